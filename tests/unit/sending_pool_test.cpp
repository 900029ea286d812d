#include "../support/catch.hpp"
#include <mq/runtime/sending_pool.hpp>

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using mq::runtime::Sending;
using mq::runtime::SendingPool;

namespace {

void Put(SendingPool& pool, std::unique_ptr<Sending> sending) {
    std::array<std::unique_ptr<mq::backend::Publication>, 1> ended{std::move(sending)};
    pool.Put(ended);
    CHECK(ended[0] == nullptr);
}

}  // namespace

TEST_CASE("a sending that comes back from the pool has nothing of its past") {
    SendingPool pool;
    auto first = pool.Get();
    Sending* const address = first.get();
    auto captured = std::make_shared<int>(1);
    first->message = {.body = "body",
                      .key = "key",
                      .headers = {{"a", "b"}},
                      .id = "id",
                      .content_type = "type",
                      .correlation_id = "correlation",
                      .reply_to = "reply"};
    first->possible_duplicate = true;
    first->error = std::make_unique<mq::Error>(mq::ErrorCode::kTimeout, "too late");
    first->weight = 1;
    first->callback = [captured](const mq::SendResult&) {};
    Put(pool, std::move(first));
    CHECK(captured.use_count() == 1);

    const auto second = pool.Get();
    CHECK(second.get() == address);
    CHECK(second->message == mq::Message{});
    CHECK_FALSE(second->possible_duplicate);
    CHECK(second->error == nullptr);
    CHECK(second->outlet == nullptr);
    CHECK(second->weight == 0);
    CHECK_FALSE(second->callback);
    CHECK(pool.Get().get() != address);
}

TEST_CASE("the pool keeps no large strings, and a bounded number of sendings") {
    SendingPool pool;
    auto large = pool.Get();
    large->message.body.assign(1'000'000, 'x');
    Put(pool, std::move(large));
    CHECK(pool.Get()->message.body.capacity() < 1'000'000);

    constexpr std::size_t kMany = 10'000;
    std::vector<std::unique_ptr<mq::backend::Publication>> ended;
    for (std::size_t i = 0; i < kMany; ++i) ended.push_back(std::make_unique<Sending>());
    pool.Put(ended);
    CHECK(pool.kept() < kMany);
    CHECK(pool.kept() > 0);
}
