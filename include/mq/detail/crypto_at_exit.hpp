/// @file crypto_at_exit.hpp
/// What OpenSSL does when the program ends, for client libraries that use it.
#pragma once

#include <dlfcn.h>

#include <cstdint>

namespace mq::detail {

/// Has OpenSSL leave its memory to the system at the program's end. By itself it frees it in a function
/// that it registers by atexit(3) when it is first used. That is later than a static client is made,
/// and so its function would run before that client's destructor, which closes TLS connections. Without
/// effect where OpenSSL was used before, for then its function runs later than the destructor does; and
/// where the program has no OpenSSL. Found by name: no header of it may be installed. Thread-safe.
inline void KeepCryptoAtExit() noexcept {
    constexpr std::uint64_t kNoAtExit = 0x00080000;  // OPENSSL_INIT_NO_ATEXIT, since 1.1.1
    using Initialise = int (*)(std::uint64_t options, const void* settings);
    void* const found = ::dlsym(RTLD_DEFAULT, "OPENSSL_init_crypto");
    if (found == nullptr) return;
    static_cast<void>(reinterpret_cast<Initialise>(found)(kNoAtExit, nullptr));
}

}  // namespace mq::detail
