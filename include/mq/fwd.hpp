/// @file fwd.hpp
/// Forward declarations of what business code names, for headers that only mention it.
#pragma once

namespace mq {

enum class DedupAnswer : unsigned char;
enum class ErrorCode;
enum class Outcome;
enum class Order : unsigned char;
enum class Policy : unsigned char;
enum class Side : unsigned char;

class Client;
class DedupStore;
class Delivery;
class Error;
class SendResult;
class Subscription;

struct ClientOptions;
struct Config;
struct DedupKey;
struct Message;
struct RecvOptions;
struct TopicStatus;

}  // namespace mq
