/// @file tls_name.hpp
/// Lets rabbitmq-c connect by TLS to one address of a host and still ask for the host's name, and check
/// the certificate against it. The library takes one text for both, and tries no second address where
/// the first is silent. Knows nothing of the client library but that it uses OpenSSL.
#pragma once

#include <dlfcn.h>

#include <cstring>
#include <string>
#include <utility>

namespace mq::rabbitmq::detail {

/// The name for the TLS connections that this thread opens, as long as the object lives. OpenSSL is
/// called by the symbols that the client library has brought into the program: this library links none
/// of it itself.
class TlsName {
public:
    /// `context` is the OpenSSL context of the library's socket. Where `check` is set, a certificate
    /// for another host fails the library's check of the certificate.
    TlsName(void* context, std::string host, bool check) : host_(std::move(host)), check_(check) {
        const Functions& openssl = Functions::Get();
        if (!openssl.Complete() || context == nullptr) return;
        current_ = this;
        openssl.set_info_callback(context, &TlsName::OnInfo);
        works_ = true;
    }
    TlsName(const TlsName&) = delete;
    TlsName& operator=(const TlsName&) = delete;
    ~TlsName() {
        if (current_ == this) current_ = nullptr;
    }

    /// False where there is no such OpenSSL in this program: the name has to be given to the library.
    [[nodiscard]] bool Works() const noexcept { return works_; }
    /// Whether the certificate was found to be one for another host.
    [[nodiscard]] bool WrongHost() const noexcept { return wrong_host_; }

private:
    using Callback = void (*)(const void* connection, int where, int value);

    // What is used of OpenSSL 1.1 and 3 alike: functions and numbers of its stable interface.
    struct Functions {
        void (*set_info_callback)(void* context, Callback callback) = nullptr;
        long (*control)(void* connection, int command, long number, void* text) = nullptr;
        int (*set_host)(void* connection, const char* host) = nullptr;
        long (*verify_result)(const void* connection) = nullptr;

        static const Functions& Get() {
            static const Functions functions = [] {
                Functions found;
                Find("SSL_CTX_set_info_callback", found.set_info_callback);
                Find("SSL_ctrl", found.control);
                Find("SSL_set1_host", found.set_host);
                Find("SSL_get_verify_result", found.verify_result);
                return found;
            }();
            return functions;
        }

        [[nodiscard]] bool Complete() const noexcept {
            return set_info_callback != nullptr && control != nullptr && set_host != nullptr &&
                   verify_result != nullptr;
        }

        template <typename Function>
        static void Find(const char* name, Function& function) {
            void* const symbol = ::dlsym(RTLD_DEFAULT, name);
            static_assert(sizeof(symbol) == sizeof(function));
            std::memcpy(&function, &symbol, sizeof(symbol));
        }
    };

    static constexpr int kHandshakeStart = 0x10;  // SSL_CB_HANDSHAKE_START
    static constexpr int kHandshakeDone = 0x20;   // SSL_CB_HANDSHAKE_DONE
    static constexpr int kSetServerName = 55;     // SSL_CTRL_SET_TLSEXT_HOSTNAME
    static constexpr long kHostMismatch = 62;     // X509_V_ERR_HOSTNAME_MISMATCH

    // Comes later as well, on threads that have opened nothing.
    static void OnInfo(const void* connection, int where, int /*value*/) {
        TlsName* const name = current_;
        if (name == nullptr) return;
        const Functions& openssl = Functions::Get();
        void* const changed = const_cast<void*>(connection);
        if ((where & kHandshakeStart) != 0) {
            openssl.control(changed, kSetServerName, 0, name->host_.data());
            if (name->check_) openssl.set_host(changed, name->host_.c_str());
        } else if ((where & kHandshakeDone) != 0) {
            name->wrong_host_ = openssl.verify_result(connection) == kHostMismatch;
        }
    }

    static inline thread_local TlsName* current_ = nullptr;

    std::string host_;
    const bool check_;
    bool works_ = false;
    bool wrong_host_ = false;
};

}  // namespace mq::rabbitmq::detail
