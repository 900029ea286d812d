/// @file engine.hpp
/// What Proton's C++ client leaves to the C library beneath it. That library's functions are looked up
/// in the process, where the C++ client has brought them: Debian's packages give it no name to link it
/// by. Where they are not found, nothing happens, and nothing is known.
#pragma once

#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/proton.hpp>

#include <dlfcn.h>

#include <cstdint>
#include <optional>
#include <string>

namespace mq::activemq::detail {

/// A function of the C library; null where it is not found.
template <typename Function>
Function* EngineFunction(const char* name) noexcept {
    return reinterpret_cast<Function*>(::dlsym(RTLD_DEFAULT, name));
}

/// The C library's object in one of the C++ client's.
template <typename Wrapper>
class Engine : public Wrapper {
public:
    explicit Engine(const Wrapper& wrapper) : Wrapper(wrapper) {}
    [[nodiscard]] auto* Get() const { return this->pn_object(); }
};

/// Gives back what a link holds, which the C++ client keeps until the connection ends. For one that
/// both ends have closed or detached, outside of its own events.
inline void FreeLink(const proton::link& link) {
    static auto* const free = EngineFunction<decltype(pn_link_free)>("pn_link_free");
    if (free != nullptr && !!link) free(Engine<proton::link>{link}.Get());
}

/// The largest message in bytes that the other end takes by a link; 0 where it has not said.
inline std::uint64_t MaxMessageSizeOf(const proton::link& link) {
    static auto* const size =
        EngineFunction<decltype(pn_link_remote_max_message_size)>("pn_link_remote_max_message_size");
    return size == nullptr ? 0 : size(Engine<proton::link>{link}.Get());
}

/// Why the other end has rejected a message; nothing where it has not said.
inline std::optional<Failure> RejectionOf(const proton::transfer& transfer, const std::string& where) {
    static auto* const remote = EngineFunction<decltype(pn_delivery_remote)>("pn_delivery_remote");
    static auto* const condition =
        EngineFunction<decltype(pn_disposition_condition)>("pn_disposition_condition");
    static auto* const name = EngineFunction<decltype(pn_condition_get_name)>("pn_condition_get_name");
    static auto* const text =
        EngineFunction<decltype(pn_condition_get_description)>("pn_condition_get_description");
    if (remote == nullptr || condition == nullptr || name == nullptr || text == nullptr) return {};
    pn_condition_t* const said = condition(remote(Engine<proton::transfer>{transfer}.Get()));
    const auto read = [said](auto* function) {
        const char* const found = function(said);
        return std::string{found == nullptr ? "" : found};
    };
    const std::string symbol = read(name);
    const std::string description = read(text);
    if (symbol.empty() && description.empty()) return {};
    Failure failure = FromCondition(where, symbol, description);
    if (failure.code == ErrorCode::kUnavailable) failure.code = ErrorCode::kRefused;
    return failure;
}

}  // namespace mq::activemq::detail
