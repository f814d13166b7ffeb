// SHA-256 for SHA256SUMS and SHAKE128 for the words of instructions (FIPS 180-4, FIPS 202).
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace qtransformer {

namespace detail {

constexpr std::uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

inline std::uint32_t rotated_right(std::uint32_t x, int by) { return x >> by | x << (32 - by); }
inline std::uint64_t rotated_left(std::uint64_t x, int by) { return by ? x << by | x >> (64 - by) : x; }

inline void sha256_block(std::array<std::uint32_t, 8>& hash, const unsigned char* block) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i)
        w[i] = std::uint32_t(block[4 * i]) << 24 | std::uint32_t(block[4 * i + 1]) << 16 |
               std::uint32_t(block[4 * i + 2]) << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
        const auto a = rotated_right(w[i - 15], 7) ^ rotated_right(w[i - 15], 18) ^ w[i - 15] >> 3;
        const auto b = rotated_right(w[i - 2], 17) ^ rotated_right(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    auto s = hash;
    for (int i = 0; i < 64; ++i) {
        const auto e = rotated_right(s[4], 6) ^ rotated_right(s[4], 11) ^ rotated_right(s[4], 25);
        const auto one = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha256_constants[i] + w[i];
        const auto a = rotated_right(s[0], 2) ^ rotated_right(s[0], 13) ^ rotated_right(s[0], 22);
        const auto two = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s = {one + two, s[0], s[1], s[2], s[3] + one, s[4], s[5], s[6]};
    }
    for (int i = 0; i < 8; ++i) hash[i] += s[i];
}

inline void keccak(std::array<std::uint64_t, 25>& a) {
    unsigned lfsr = 1;  // makes the constants of the rounds, one bit a call
    for (int round = 0; round < 24; ++round) {
        std::uint64_t c[5], b[25];
        for (int x = 0; x < 5; ++x) c[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
        for (int i = 0; i < 25; ++i) a[i] ^= c[(i + 4) % 5] ^ rotated_left(c[(i + 1) % 5], 1);
        b[0] = a[0];
        for (int step = 0, x = 1, y = 0; step < 24; ++step) {  // turns each lane and moves it
            const int to = (2 * x + 3 * y) % 5;
            b[y + 5 * to] = rotated_left(a[x + 5 * y], (step + 1) * (step + 2) / 2 % 64);
            x = y;
            y = to;
        }
        for (int i = 0; i < 25; ++i) a[i] = b[i] ^ (~b[i / 5 * 5 + (i + 1) % 5] & b[i / 5 * 5 + (i + 2) % 5]);
        for (int bit = 0; bit < 7; ++bit) {
            if (lfsr & 1) a[0] ^= std::uint64_t(1) << ((1 << bit) - 1);
            lfsr = lfsr << 1 ^ (lfsr & 0x80 ? 0x171 : 0);
        }
    }
}

}  // namespace detail

/// Returns the digest as 64 hexadecimal digits.
inline std::string sha256(const std::string& data) {
    std::array<std::uint32_t, 8> hash = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const std::size_t whole = data.size() / 64 * 64;
    const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
    for (std::size_t at = 0; at < whole; at += 64) detail::sha256_block(hash, bytes + at);
    std::string rest = data.substr(whole) + '\x80';
    while (rest.size() % 64 != 56) rest += '\0';
    for (int shift = 56; shift >= 0; shift -= 8) rest += static_cast<char>(std::uint64_t(data.size()) * 8 >> shift);
    for (std::size_t at = 0; at < rest.size(); at += 64)
        detail::sha256_block(hash, reinterpret_cast<const unsigned char*>(rest.data()) + at);
    std::string digits;
    for (auto word : hash)
        for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
    return digits;
}

/// Returns the first 16 bytes of SHAKE128.
inline std::array<unsigned char, 16> shake128(const std::string& data) {
    constexpr std::size_t rate = 168;
    std::string padded = data + '\x1f';
    while (padded.size() % rate) padded += '\0';
    padded.back() = static_cast<char>(padded.back() | '\x80');
    std::array<std::uint64_t, 25> state{};
    for (std::size_t at = 0; at < padded.size(); at += rate) {
        for (std::size_t i = 0; i < rate; ++i)
            state[i / 8] ^= std::uint64_t(static_cast<unsigned char>(padded[at + i])) << i % 8 * 8;
        detail::keccak(state);
    }
    std::array<unsigned char, 16> digest;
    for (std::size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<unsigned char>(state[i / 8] >> i % 8 * 8);
    return digest;
}

}  // namespace qtransformer
