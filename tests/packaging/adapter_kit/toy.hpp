/// @file toy.hpp
/// An adapter from outside the library: `toy://NAME`, which hands everything on to the broker
/// `memory://NAME`.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/memory.hpp>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace toy {

/// The kind of broker that does the work.
inline mq::backend::Kind Memory() { return *mq::backend::Registry::Instance().Find("memory"); }

class Backend final : public mq::backend::Backend {
public:
    explicit Backend(mq::backend::Context context) : memory_(Memory().make(std::move(context))) {}

    std::unique_ptr<mq::backend::Publisher> MakePublisher(
        std::shared_ptr<const mq::backend::Destination> destination) override {
        return memory_->MakePublisher(std::move(destination));
    }

    std::unique_ptr<mq::backend::Consumer> Subscribe(
        mq::backend::Subscribing subscribing,
        std::shared_ptr<mq::backend::Receiver> receiver) override {
        return memory_->Subscribe(std::move(subscribing), std::move(receiver));
    }

    mq::backend::Listening CheckListening(const mq::backend::Destination& destination,
                                          const std::string& group,
                                          mq::backend::Clock::time_point deadline) noexcept override {
        return memory_->CheckListening(destination, group, deadline);
    }

    mq::backend::Backlog CheckBacklog(const mq::backend::Destination& destination,
                                      const std::string& group,
                                      mq::backend::Clock::time_point deadline) noexcept override {
        return memory_->CheckBacklog(destination, group, deadline);
    }

    [[nodiscard]] mq::backend::Limits GetLimits() const override { return memory_->GetLimits(); }

    void Close(mq::backend::Clock::time_point deadline) noexcept override { memory_->Close(deadline); }

private:
    const std::unique_ptr<mq::backend::Backend> memory_;
};

inline std::vector<mq::ConfigProblem> Check(const mq::Url& url,
                                            const std::map<std::string, std::string>& options) {
    return Memory().check(url, options);
}

inline std::unique_ptr<mq::backend::Backend> Make(mq::backend::Context context) {
    return std::make_unique<Backend>(std::move(context));
}

inline const bool kRegistered = mq::backend::Registry::Instance().Add(
    {.name = "toy", .schemes = {"toy"}, .check = &Check, .make = &Make});

}  // namespace toy
