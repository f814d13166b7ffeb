// Reads golden.npz: a zip archive (PKWARE's APPNOTE) of deflated (RFC 1951) .npy files, as numpy writes them.
//
// So that there is one file of recorded steps for all readers, and nothing to install. Never needed while a robot
// moves.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common.hpp"

namespace qtransformer {

/// An array of golden.npz.
struct Array {
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::string bytes;  // C order, little endian

    /// Elements along the other axes.
    std::size_t row_size() const { return num_elements({shape.begin() + 1, shape.end()}); }
};

namespace detail {

[[noreturn]] inline void damaged(const char* what) {
    throw ControllerError(std::string("golden.npz: ") + what + "; export the bundle again");
}

/// A canonical Huffman code by the number of codes of each length.
struct Huffman {
    unsigned short counts[16] = {}, symbols[288];

    Huffman(const unsigned char* lengths, int num_symbols) {
        for (int i = 0; i < num_symbols; ++i) ++counts[lengths[i]];
        counts[0] = 0;
        for (int length = 1, left = 1; length < 16; ++length)
            if ((left = 2 * left - counts[length]) < 0) damaged("a code with too many symbols");
        unsigned short offsets[16] = {};
        for (int length = 1; length < 15; ++length)
            offsets[length + 1] = static_cast<unsigned short>(offsets[length] + counts[length]);
        for (int i = 0; i < num_symbols; ++i)
            if (lengths[i]) symbols[offsets[lengths[i]]++] = static_cast<unsigned short>(i);
    }
};

class Inflater {
public:
    Inflater(const unsigned char* data, std::size_t size, std::size_t expected)
        : data_(data), size_(size), expected_(expected) {
        out_.reserve(expected);
    }

    std::string run() {
        bool is_last = false;
        while (!is_last) {
            is_last = bits(1);
            const unsigned type = bits(2);
            if (type == 0) stored();
            else if (type == 1) fixed();
            else if (type == 2) dynamic();
            else damaged("a block of an unknown type");
        }
        if (out_.size() != expected_) damaged("a member is too short");
        return std::move(out_);
    }

private:
    unsigned bits(int count) {
        while (num_bits_ < count) {
            if (at_ >= size_) damaged("a member ends too early");
            buffer_ |= std::uint32_t(data_[at_++]) << num_bits_;
            num_bits_ += 8;
        }
        const unsigned value = buffer_ & ((1u << count) - 1);
        buffer_ >>= count;
        num_bits_ -= count;
        return value;
    }

    unsigned symbol(const Huffman& code) {
        int value = 0, first = 0, index = 0;
        for (int length = 1; length < 16; ++length) {
            value |= static_cast<int>(bits(1));
            const int count = code.counts[length];
            if (value - count < first) return code.symbols[index + value - first];
            index += count;
            first = (first + count) << 1;
            value <<= 1;
        }
        damaged("a code that is none");
    }

    void put(char byte) {
        if (out_.size() >= expected_) damaged("a member is too long");
        out_ += byte;
    }

    void stored() {
        buffer_ = 0;
        num_bits_ = 0;
        if (size_ - at_ < 4) damaged("a member ends too early");
        const std::size_t length = data_[at_] | data_[at_ + 1] << 8;
        at_ += 4;
        if (size_ - at_ < length) damaged("a member ends too early");
        for (std::size_t i = 0; i < length; ++i) put(static_cast<char>(data_[at_++]));
    }

    void fixed() {
        unsigned char lengths[288], distances[30];
        for (int i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        std::memset(distances, 5, sizeof distances);
        codes(Huffman(lengths, 288), Huffman(distances, 30));
    }

    void dynamic() {
        static constexpr unsigned char order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
        const unsigned num_lengths = bits(5) + 257, num_distances = bits(5) + 1, num_codes = bits(4) + 4;
        if (num_lengths > 286 || num_distances > 30) damaged("too many codes");
        unsigned char lengths[320] = {};
        for (unsigned i = 0; i < num_codes; ++i) lengths[order[i]] = static_cast<unsigned char>(bits(3));
        const Huffman code(lengths, 19);
        std::memset(lengths, 0, sizeof lengths);
        for (unsigned i = 0; i < num_lengths + num_distances;) {
            const unsigned found = symbol(code);
            if (found < 16) {
                lengths[i++] = static_cast<unsigned char>(found);
                continue;
            }
            if (found == 16 && i == 0) damaged("a length that repeats nothing");
            const unsigned char repeated = found == 16 ? lengths[i - 1] : 0;
            unsigned times = found == 16 ? 3 + bits(2) : found == 17 ? 3 + bits(3) : 11 + bits(7);
            if (i + times > num_lengths + num_distances) damaged("too many lengths");
            while (times--) lengths[i++] = repeated;
        }
        codes(Huffman(lengths, static_cast<int>(num_lengths)),
              Huffman(lengths + num_lengths, static_cast<int>(num_distances)));
    }

    void codes(const Huffman& literals, const Huffman& distances) {
        static constexpr unsigned short bases[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                   31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
        static constexpr unsigned short starts[] = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                                    33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                                    1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
        while (true) {
            const unsigned found = symbol(literals);
            if (found == 256) return;
            if (found < 256) {
                put(static_cast<char>(found));
                continue;
            }
            const unsigned step = found - 257;
            if (step > 28) damaged("a length that is none");
            std::size_t length = bases[step] + bits(step < 8 || step == 28 ? 0 : static_cast<int>(step / 4 - 1));
            const unsigned far = symbol(distances);
            if (far > 29) damaged("a distance that is none");
            const std::size_t distance = starts[far] + bits(far < 4 ? 0 : static_cast<int>(far / 2 - 1));
            if (distance > out_.size()) damaged("a distance beyond the beginning");
            while (length--) put(out_[out_.size() - distance]);
        }
    }

    const unsigned char* data_;
    std::size_t size_, expected_, at_ = 0;
    std::uint32_t buffer_ = 0;
    int num_bits_ = 0;
    std::string out_;
};

/// Returns the value behind `key` in the header of an .npy file, a Python dictionary.
inline std::string header_value(const std::string& header, const std::string& key, const std::string& ends) {
    const auto at = header.find("'" + key + "': ");
    if (at == std::string::npos) damaged("an array without a header");
    const auto first = at + key.size() + 4, last = header.find_first_of(ends, first + 1);
    if (last == std::string::npos) damaged("an array without a header");
    return header.substr(first, last - first);
}

inline Array npy(const std::string& file) {
    if (file.size() < 12 || file.compare(0, 6, "\x93NUMPY", 6) != 0) damaged("a member that is no array");
    const auto byte = [&file](std::size_t at) { return std::size_t(static_cast<unsigned char>(file[at])); };
    const std::size_t start = file[6] == 1 ? 10 : 12;
    const std::size_t length =
        file[6] == 1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
    if (file.size() < start + length) damaged("an array that ends too early");
    const std::string header = file.substr(start, length);
    const std::string descr = header_value(header, "descr", ","), shape = header_value(header, "shape", ")") + ",";
    if (header_value(header, "fortran_order", ",") != "False") damaged("an array in Fortran's order");
    Array array{Dtype::text, {}, file.substr(start + length)};
    for (const auto& each : dtypes)
        if (each.size &&
            (descr == std::string("'<") + each.descr + "'" || descr == std::string("'|") + each.descr + "'"))
            array.dtype = each.dtype;
    if (array.dtype == Dtype::text) damaged("an array of an unknown type");
    for (std::size_t at = 1; at < shape.size();) {
        const auto comma = shape.find(',', at);
        const std::string digits = shape.substr(at, comma - at);
        if (digits.find_first_of("0123456789") != std::string::npos) array.shape.push_back(std::stoll(digits));
        at = comma + 1;
    }
    if (array.bytes.size() != num_elements(array.shape) * facts(array.dtype).size || array.shape.empty())
        damaged("an array of a wrong length");
    return array;
}

}  // namespace detail

/// Returns the arrays by name; throws ControllerError where `archive` is no .npz.
inline std::map<std::string, Array> read_npz(const std::string& archive) {
    using detail::damaged;
    const auto number = [&archive](std::size_t at, int size) {
        if (at + static_cast<std::size_t>(size) > archive.size()) damaged("it ends too early");
        std::uint32_t value = 0;
        for (int i = 0; i < size; ++i)
            value |= std::uint32_t(static_cast<unsigned char>(archive[at + static_cast<std::size_t>(i)])) << 8 * i;
        return value;
    };
    const auto end = archive.rfind("PK\5\6");
    if (end == std::string::npos) damaged("no zip archive");
    std::map<std::string, Array> arrays;
    std::size_t at = number(end + 16, 4);
    for (unsigned entry = number(end + 10, 2); entry--;) {  // of the central directory
        if (number(at, 4) != 0x02014b50) damaged("its directory is damaged");
        const std::size_t packed = number(at + 20, 4), size = number(at + 24, 4), name_size = number(at + 28, 2);
        const std::size_t local = number(at + 42, 4), method = number(at + 10, 2);
        std::string name = archive.substr(at + 46, name_size);
        const std::size_t first = local + 30 + number(local + 26, 2) + number(local + 28, 2);
        if (first > archive.size() || archive.size() - first < packed) damaged("a member ends too early");
        if (method != 0 && method != 8) damaged("a member is packed in an unknown way");
        const auto* data = reinterpret_cast<const unsigned char*>(archive.data()) + first;
        const std::string file =
            method == 0 ? archive.substr(first, packed) : detail::Inflater(data, packed, size).run();
        if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0) name.resize(name.size() - 4);
        arrays.emplace(name, detail::npy(file));
        at += 46 + name_size + number(at + 30, 2) + number(at + 32, 2);
    }
    return arrays;
}

}  // namespace qtransformer
