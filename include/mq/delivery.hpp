/// @file delivery.hpp
/// A received message together with the duty to settle it: by hand, later, and on any thread.
#pragma once

#include <mq/detail/process.hpp>
#include <mq/message.hpp>

#include <memory>
#include <utility>

namespace mq {

namespace detail {

/// What a Delivery needs from the runtime that made it.
class Settleable {
public:
    virtual ~Settleable() = default;
    [[nodiscard]] virtual const Message& message() const noexcept = 0;
    virtual void Ack() noexcept = 0;
    virtual void Nack() noexcept = 0;
};

}  // namespace detail

/// One received message, to be settled exactly once. Move-only. It may travel between threads, but
/// only one of them uses it at a time. Settling again is harmless, and so is settling after the
/// subscription or the client was closed: the broker then delivers the message again. In the child of a
/// fork it settles nothing: that is the parent's.
class Delivery {
public:
    /// Made by the library.
    explicit Delivery(std::unique_ptr<detail::Settleable> settleable) noexcept
        : settleable_(std::move(settleable)) {}

    Delivery(Delivery&&) noexcept = default;
    Delivery& operator=(Delivery&& other) noexcept {
        if (this != &other) {
            Nack();
            if (process_.InChild()) detail::LeaveBehind(std::move(settleable_));
            settleable_ = std::move(other.settleable_);
            process_ = other.process_;
        }
        return *this;
    }
    Delivery(const Delivery&) = delete;
    Delivery& operator=(const Delivery&) = delete;

    /// The same as Nack, unless it was settled.
    ~Delivery() {
        Nack();
        if (settleable_ != nullptr && process_.InChild()) detail::LeaveBehind(std::move(settleable_));
    }

    /// The message. Valid as long as the delivery, also after it was settled.
    [[nodiscard]] const Message& message() const noexcept { return settleable_->message(); }

    /// The group is done with the message. Never blocks: the broker learns of it in the background. A
    /// DedupStore, where the client has one, is told first, and on this thread; so it is by Nack.
    void Ack() noexcept {
        if (settleable_ != nullptr && !process_.InChild()) settleable_->Ack();
    }

    /// The message is handled again after a delay that grows with each time. Never blocks.
    void Nack() noexcept {
        if (settleable_ != nullptr && !process_.InChild()) settleable_->Nack();
    }

private:
    std::unique_ptr<detail::Settleable> settleable_;
    detail::ForkMark process_;
};

}  // namespace mq
