/// @file dedup.hpp
/// What a program implements to have duplicates suppressed across processes: a store, in a database or
/// a Redis, that knows which messages a group has handled. Without one, every client remembers for
/// itself (`dedup` of a topic).
#pragma once

#include <chrono>
#include <string_view>

namespace mq {

/// One message of one group, as a store is asked about it. Valid during the call.
struct DedupKey {
    std::string_view topic = {};  ///< Of the config: the same on both sides.
    std::string_view group = {};
    std::string_view id = {};  ///< Any bytes; never empty.
    /// Who asks: another text for each client, in whatever process, and the same in every call of one.
    std::string_view client = {};
};

/// What a store says of a message.
enum class DedupAnswer : unsigned char {
    kHandle,     ///< It was not handled yet, and is now claimed by the client that has asked.
    kHandled,    ///< It was handled within the window: settle it, without the handler.
    kElsewhere,  ///< Another client has claimed it, and may be handling it: ask again later.
};

/// Remembers for all processes of a group which messages were handled. Given to a client in
/// ClientOptions::dedup_store; used for the topics that have a `dedup` window, and asked only for what
/// the client does not remember itself.
///
/// **What is called when.** Claim before a handler runs; then either Complete, when the message was
/// settled as processed, before the broker is told of it; or Abandon, when the handler threw or the
/// delivery was nacked or dropped, and then Claim again before its next attempt. A client does not ask
/// about one id of a group twice at once.
///
/// **Claims must end by themselves**, because the process that has one may die: give each a time that
/// is longer than the slowest handler. One that has ended early lets a second handler run beside the
/// first. In Redis, Claim is `SET key client NX PX lease`, and where that does nothing, a look at what
/// the key holds; Complete is `SET key handled PX window`; Abandon deletes the key where it holds the
/// client. In SQL it is a row with a unique key, a client and a time.
///
/// **Threads.** Called from several threads at once, with no lock of the library held: Claim on the
/// threads that run handlers, Complete and Abandon on the thread that settles. May block, and then
/// takes the time from that thread; a timeout of its own keeps a store that hangs from holding up
/// everything that waits for a handler.
///
/// **Exceptions** go to the log, and no message is lost by one. Where Claim throws, the message is not
/// handled until a later Claim answers, with the delays of a handler that throws: a store that had
/// rather risk a duplicate than wait catches its exceptions and answers kHandle. Where Complete throws,
/// the message is settled all the same, because another attempt would be a duplicate: this client
/// remembers it, the others do not. Where Abandon throws, the claim ends by its own time.
class DedupStore {
public:
    DedupStore() = default;
    DedupStore(const DedupStore&) = delete;
    DedupStore& operator=(const DedupStore&) = delete;
    virtual ~DedupStore() = default;

    /// Claims a message, unless it was handled or somebody else has claimed it: one step, of which only
    /// one client can be the first. A claim of the client that asks is its own: kHandle.
    virtual DedupAnswer Claim(const DedupKey& key) = 0;

    /// The message was handled: Claim answers kHandled for `window` from now on. The claim is over.
    virtual void Complete(const DedupKey& key, std::chrono::milliseconds window) = 0;

    /// The message was not handled, and anybody may claim it. Does nothing where another client has
    /// claimed it meanwhile.
    virtual void Abandon(const DedupKey& key) = 0;
};

}  // namespace mq
