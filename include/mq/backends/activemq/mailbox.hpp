/// @file mailbox.hpp
/// What other threads leave for the thread of an ActiveMQ connection, and the questions among it.
#pragma once

#include <mq/backends/activemq/inquirer.hpp>
#include <mq/detail/mailbox.hpp>

#include <memory>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// What every I/O thread can be left. Outlives the thread, and whoever holds something of it.
class Mailbox : public mq::detail::Mailbox {
public:
    /// Leaves a question for the I/O thread. Returns false where there is no connection to ask by.
    bool Ask(std::shared_ptr<Inquiry> inquiry) {
        return PostIfConnected([&] { inquiries.push_back(std::move(inquiry)); });
    }

    /// Guarded by the lock: touched by the callbacks of Post, Collect and End alone.
    std::vector<std::shared_ptr<Inquiry>> inquiries = {};
};

}  // namespace mq::activemq::detail
