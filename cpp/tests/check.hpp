// Checks that do not vanish with NDEBUG.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                    \
        }                                                                                    \
    } while (false)

#define CHECK_THROWS(expression, type)                                                             \
    do {                                                                                           \
        bool thrown = false;                                                                       \
        try {                                                                                      \
            (void)(expression);                                                                    \
        } catch (const type&) {                                                                    \
            thrown = true;                                                                         \
        }                                                                                          \
        if (!thrown) {                                                                             \
            std::fprintf(stderr, "%s:%d: does not throw %s: %s\n", __FILE__, __LINE__, #type, #expression); \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (false)
