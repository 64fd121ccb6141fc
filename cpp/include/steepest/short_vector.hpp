// A vector of numbers that keeps a few of them in itself: where a call has some dozens of these, allocating them would cost
// more than the call's arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace steepest {

template <class T, std::size_t N>
class ShortVector {
    static_assert(std::is_trivially_copyable<T>::value, "elements are copied as bytes");

public:
    ShortVector() = default;
    explicit ShortVector(std::size_t size, T value = T{}) { assign(size, value); }
    ShortVector(std::initializer_list<T> values) : ShortVector(values.begin(), values.end()) {}
    template <class From, class = std::enable_if_t<!std::is_arithmetic<From>::value>>
    ShortVector(From first, From last) {
        for (; first != last; ++first) push_back(static_cast<T>(*first));
    }

    void assign(std::size_t size, T value) {
        size_ = size;
        if (size > N) many_.assign(size, value);
        else std::fill_n(few_, size, value);
    }
    void push_back(T value) {
        if (size_ == N) many_.assign(few_, few_ + N);
        if (size_ < N) few_[size_] = value;
        else many_.push_back(value);
        ++size_;
    }

    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T* data() { return size_ > N ? many_.data() : few_; }
    const T* data() const { return size_ > N ? many_.data() : few_; }
    T* begin() { return data(); }
    T* end() { return data() + size_; }
    const T* begin() const { return data(); }
    const T* end() const { return data() + size_; }
    T& operator[](std::size_t i) { return data()[i]; }
    const T& operator[](std::size_t i) const { return data()[i]; }
    T& back() { return data()[size_ - 1]; }
    const T& back() const { return data()[size_ - 1]; }

    friend bool operator==(const ShortVector& a, const ShortVector& b) {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
    friend bool operator!=(const ShortVector& a, const ShortVector& b) { return !(a == b); }

private:
    std::size_t size_ = 0;
    T few_[N];             // all of them, if there are at most N
    std::vector<T> many_;  // all of them otherwise
};

}  // namespace steepest
