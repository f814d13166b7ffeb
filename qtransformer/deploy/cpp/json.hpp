// A strict reader of JSON (RFC 8259), since policy.json is read once, when a controller starts.
//
// It takes what Python's json.dumps writes and no more: no comments, no NaN, no second value. Members keep their order.
#pragma once

#include <cctype>
#include <cmath>
#include <locale>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"

namespace qtransformer {

class Json {
public:
    enum class Type { null, boolean, number, text, array, object };
    using Members = std::vector<std::pair<std::string, Json>>;

    /// Throws ControllerError where `text` is no JSON; `place` is how messages call it.
    static Json parse(const std::string& text, const std::string& place);
    static Json of(double number) {
        Json value;
        value.type_ = Type::number;
        value.number_ = number;
        return value;
    }

    bool is_null() const { return type_ == Type::null; }
    double number() const { return wanted(Type::number, "a number"), number_; }
    const std::string& text() const { return wanted(Type::text, "text"), text_; }
    const std::vector<Json>& items() const { return wanted(Type::array, "an array"), items_; }
    const Members& members() const { return wanted(Type::object, "an object"), members_; }
    bool is_text() const { return type_ == Type::text; }

    const Json* find(const std::string& key) const {
        for (const auto& member : members())
            if (member.first == key) return &member.second;
        return nullptr;
    }
    const Json& at(const std::string& key) const {
        if (const Json* found = find(key)) return *found;
        throw ControllerError(place_ + ": must have " + key + "; export the bundle again");
    }
    Json& at(const std::string& key) { return const_cast<Json&>(static_cast<const Json&>(*this).at(key)); }
    void set(const std::string& key, const Json& value) {
        for (auto& member : members_)
            if (member.first == key) {
                member.second = value;
                return;
            }
        members_.emplace_back(key, value);
    }
    std::vector<Json>& items() { return wanted(Type::array, "an array"), items_; }

private:
    friend class JsonReader;
    void wanted(Type type, const char* what) const {
        if (type_ != type) throw ControllerError(place_ + ": must be " + what + "; correct it or export again");
    }

    Type type_ = Type::null;
    std::string place_;
    double number_ = 0;
    std::string text_;
    std::vector<Json> items_;
    Members members_;
};

class JsonReader {
public:
    JsonReader(const std::string& text, std::string place) : text_(text), place_(std::move(place)) {}

    Json document() {
        Json value = read(place_, 0);
        skip_blanks();
        if (at_ != text_.size()) fail("one value and no more");
        return value;
    }

private:
    static constexpr int max_depth = 64;

    [[noreturn]] void fail(const std::string& expected) const {
        throw ControllerError(place_ + ": is damaged at byte " + std::to_string(at_) + ": expected " + expected);
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip_blanks() {
        while (at_ < text_.size() && (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r')) ++at_;
    }
    void take(char expected) {
        if (peek() != expected) fail(std::string(1, expected));
        ++at_;
    }
    bool takes(const char* word) {
        const std::string expected(word);
        if (text_.compare(at_, expected.size(), expected) != 0) return false;
        at_ += expected.size();
        return true;
    }

    Json read(const std::string& place, int depth) {
        if (depth > max_depth) fail("no more than 64 levels");
        skip_blanks();
        Json value;
        value.place_ = place;
        if (peek() == '{') {
            value.type_ = Json::Type::object;
            read_list('}', [&] { read_member(value, depth); });
        } else if (peek() == '[') {
            value.type_ = Json::Type::array;
            read_list(']', [&] {
                value.items_.push_back(read(value.place_ + "[" + std::to_string(value.items_.size()) + "]", depth + 1));
            });
        } else if (peek() == '"') {
            value.type_ = Json::Type::text;
            value.text_ = read_text();
        } else if (takes("true") || takes("false")) {
            value.type_ = Json::Type::boolean;
            value.number_ = text_[at_ - 2] == 'u';
        } else if (!takes("null")) {
            value.type_ = Json::Type::number;
            value.number_ = read_number();
        }
        return value;
    }

    /// Reads what stands between brackets, with commas.
    template <class Each>
    void read_list(char close, Each&& each) {
        ++at_;
        skip_blanks();
        if (peek() == close) {
            ++at_;
            return;
        }
        for (;; ++at_) {
            skip_blanks();
            each();
            skip_blanks();
            if (peek() != ',') break;
        }
        take(close);
    }

    void read_member(Json& value, int depth) {
        if (peek() != '"') fail("a name in quotes");
        const std::string name = read_text();
        if (value.find(name)) fail("another name, " + name + " was there");
        skip_blanks();
        take(':');
        value.members_.emplace_back(name, read(value.place_ + "." + name, depth + 1));
    }

    void take_digits() {
        if (peek() < '0' || peek() > '9') fail("a digit");
        while (peek() >= '0' && peek() <= '9') ++at_;
    }

    double read_number() {
        const std::size_t first = at_;
        if (peek() == '-') ++at_;
        if (peek() == '0') ++at_;
        else take_digits();
        if (peek() == '.') {
            ++at_;
            take_digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            take_digits();
        }
        std::istringstream stream(text_.substr(first, at_ - first));
        stream.imbue(std::locale::classic());  // strtod would read 0,5 for 0.5 in half of Europe
        double value = 0;
        stream >> value;
        if (!stream || !std::isfinite(value)) fail("a number that a double can hold");
        return value;
    }

    unsigned read_hex() {
        unsigned code = 0;
        for (int digit = 0; digit < 4; ++digit, ++at_) {
            const char c = peek();
            if (!std::isxdigit(static_cast<unsigned char>(c))) fail("four hexadecimal digits");
            code = code * 16 + static_cast<unsigned>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        }
        return code;
    }

    void append_escape(std::string& text) {
        const char escaped = peek();
        ++at_;
        static const std::string names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const auto index = escaped ? names.find(escaped) : std::string::npos;
        if (index != std::string::npos) {
            text += meanings[index];
            return;
        }
        if (escaped != 'u') fail("an escape that JSON knows");
        unsigned code = read_hex();
        if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair
            if (!takes("\\u")) fail("the second half of a surrogate pair");
            const unsigned low = read_hex();
            if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(text, code);
    }

    static void append_utf8(std::string& text, unsigned code) {
        const auto byte = [&text](unsigned value) { text += static_cast<char>(value); };
        if (code < 0x80) return byte(code);
        if (code < 0x800) {
            byte(0xC0 | code >> 6);
            return byte(0x80 | (code & 63));
        }
        if (code < 0x10000) byte(0xE0 | code >> 12);
        else {
            byte(0xF0 | code >> 18);
            byte(0x80 | (code >> 12 & 63));
        }
        byte(0x80 | (code >> 6 & 63));
        byte(0x80 | (code & 63));
    }

    std::string read_text() {
        std::string text;
        take('"');
        while (peek() != '"') {
            if (at_ >= text_.size() || static_cast<unsigned char>(peek()) < 0x20) fail("the end of the text");
            const char c = text_[at_++];
            if (c == '\\') append_escape(text);
            else text += c;
        }
        ++at_;
        return text;
    }

    const std::string& text_;
    std::string place_;
    std::size_t at_ = 0;
};

inline Json Json::parse(const std::string& text, const std::string& place) {
    return JsonReader(text, place).document();
}

}  // namespace qtransformer
