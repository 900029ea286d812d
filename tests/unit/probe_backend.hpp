/// @file probe_backend.hpp
/// A broker under the scheme probe:// that confirms every message at once and writes down what the
/// library asks of its adapter, in which order.
#pragma once

#include "../support/backend_fakes.hpp"
#include "../support/collector.hpp"
#include <mq/backend.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mq::test {

/// What one probe://NAME has seen. Thread-safe.
class Probe {
public:
    /// The one of that name, made where it does not exist yet.
    static Probe& Of(const std::string& name) {
        static std::mutex mutex;
        static std::map<std::string, std::unique_ptr<Probe>> probes;
        const std::lock_guard lock{mutex};
        auto& probe = probes[name];
        if (probe == nullptr) probe = std::make_unique<Probe>();
        return *probe;
    }

    void Note(std::string event) {
        const std::lock_guard lock{mutex_};
        events_.push_back(std::move(event));
        changed_.notify_all();
    }

    [[nodiscard]] std::vector<std::string> Events() const {
        const std::lock_guard lock{mutex_};
        return events_;
    }

    [[nodiscard]] auto Count(const std::string& event) const {
        const std::lock_guard lock{mutex_};
        return std::count(events_.begin(), events_.end(), event);
    }

    /// Waits until that has happened; false at the deadline.
    bool WaitFor(const std::string& event, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [&] {
            return std::find(events_.begin(), events_.end(), event) != events_.end();
        });
    }

    Gate close_consumer = {};           ///< What a consumer's Close waits for.
    std::atomic<bool> deliver = false;  ///< Whether each subscription gets a message at once.

private:
    mutable std::mutex mutex_ = {};  // guards events_
    mutable std::condition_variable changed_ = {};
    std::vector<std::string> events_ = {};
};

class ProbePublisher final : public backend::Publisher {
public:
    ProbePublisher(Probe& probe, backend::PublicationSink& sink) : probe_(probe), sink_(sink) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        probe_.Note("publish");
        backend::PublicationList finished;
        finished.PushBack(std::move(publication));
        sink_.OnFinished(std::move(finished));
    }

private:
    Probe& probe_;
    backend::PublicationSink& sink_;
};

class ProbeInbound final : public backend::Inbound {
public:
    explicit ProbeInbound(Probe& probe) : probe_(probe) { message = MakeMessage("b"); }
    void Settle() noexcept override { probe_.Note("message is settled"); }
    [[nodiscard]] bool Stale() const noexcept override { return false; }

private:
    Probe& probe_;
};

class ProbeConsumer final : public backend::Consumer {
public:
    explicit ProbeConsumer(Probe& probe) : probe_(probe) {}

    [[nodiscard]] backend::ConsumerState State() const override {
        return {.phase = backend::ConsumerState::Phase::kActive};
    }
    void Stop() noexcept override { probe_.Note("consumer stops"); }
    void Close(backend::Clock::time_point /*deadline*/) noexcept override {
        probe_.Note("consumer begins to close");
        probe_.close_consumer.Wait();
        probe_.Note("consumer is closed");
    }

private:
    Probe& probe_;
};

class ProbeBackend final : public backend::Backend {
public:
    explicit ProbeBackend(const backend::Context& context)
        : probe_(Probe::Of(context.url.hosts.at(0).host)), sink_(*context.sink) {
        probe_.Note("backend is made");
    }

    std::unique_ptr<backend::Publisher> MakePublisher(
        std::shared_ptr<const backend::Destination> /*destination*/) override {
        probe_.Note("publisher is made");
        return std::make_unique<ProbePublisher>(probe_, sink_);
    }
    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing /*subscribing*/,
                                                 std::shared_ptr<backend::Receiver> receiver) override {
        if (probe_.deliver) receiver->OnDelivery(std::make_unique<ProbeInbound>(probe_));
        return std::make_unique<ProbeConsumer>(probe_);
    }
    backend::Listening CheckListening(const backend::Destination& /*destination*/,
                                      const std::string& /*group*/,
                                      backend::Clock::time_point /*deadline*/) noexcept override {
        return {.answer = backend::Listening::Answer::kYes};
    }
    backend::Backlog CheckBacklog(const backend::Destination& /*destination*/,
                                  const std::string& /*group*/,
                                  backend::Clock::time_point /*deadline*/) noexcept override {
        return {.answer = backend::Backlog::Answer::kDrained, .exact = true};
    }
    void Close(backend::Clock::time_point /*deadline*/) noexcept override {
        probe_.Note("backend is closed");
    }

private:
    Probe& probe_;
    backend::PublicationSink& sink_;
};

/// Makes the scheme available; call before the first config that names it.
inline void RegisterProbe() {
    backend::Registry::Instance().Add(
        {.name = "probe",
         .schemes = {"probe"},
         .check = nullptr,
         .make = [](backend::Context context) -> std::unique_ptr<backend::Backend> {
             return std::make_unique<ProbeBackend>(context);
         }});
}

}  // namespace mq::test
