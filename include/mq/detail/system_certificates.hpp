/// @file system_certificates.hpp
/// Where the machine keeps the certificates that it trusts.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace mq::detail {

/// The file with the certificates that the system trusts, where common distributions have it; empty
/// where there is none. For client libraries that trust nothing by themselves.
inline std::string SystemCertificates() {
    if (const char* const set = std::getenv("SSL_CERT_FILE"); set != nullptr && *set != '\0')
        return set;
    for (const char* const path :
         {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
          "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}) {
        if (::access(path, R_OK) == 0) return path;
    }
    return {};
}

}  // namespace mq::detail
