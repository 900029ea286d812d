/// @file unique_function.hpp
/// A callable of any type, owned and move-only, so that callbacks may capture promises and unique
/// pointers. C++20 has std::function only, which asks for a copy constructor.
#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace mq::detail {

template <typename Signature>
class UniqueFunction;

/// Small callables live inside the object, larger ones on the heap. Empty after default construction
/// and after a move. Calling an empty one is a defect. Not thread-safe by itself.
template <typename Result, typename... Args>
class UniqueFunction<Result(Args...)> {
public:
    UniqueFunction() noexcept = default;

    template <typename F>
    requires(!std::same_as<std::remove_cvref_t<F>, UniqueFunction> &&
             std::is_invocable_r_v<Result, std::decay_t<F>&, Args...>)
        // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): constrained above
        UniqueFunction(F&& callable) {
        using Callable = std::decay_t<F>;
        if constexpr (FitsInside<Callable>()) {
            ::new (static_cast<void*>(&storage_)) Callable(std::forward<F>(callable));
            operations_ = &kInside<Callable>;
        } else {
            ::new (static_cast<void*>(&storage_)) Callable*(new Callable(std::forward<F>(callable)));
            operations_ = &kOnHeap<Callable>;
        }
    }

    UniqueFunction(UniqueFunction&& other) noexcept { TakeFrom(other); }
    UniqueFunction& operator=(UniqueFunction&& other) noexcept {
        if (this != &other) {
            Reset();
            TakeFrom(other);
        }
        return *this;
    }
    UniqueFunction(const UniqueFunction&) = delete;
    UniqueFunction& operator=(const UniqueFunction&) = delete;
    ~UniqueFunction() { Reset(); }

    Result operator()(Args... args) {
        return operations_->call(&storage_, std::forward<Args>(args)...);
    }

    explicit operator bool() const noexcept { return operations_ != nullptr; }

private:
    struct Operations {
        Result (*call)(void* storage, Args&&... args);
        void (*move)(void* from, void* to) noexcept;
        void (*destroy)(void* storage) noexcept;
    };

    static constexpr std::size_t kSize = 4 * sizeof(void*);

    template <typename Callable>
    static constexpr bool FitsInside() {
        return sizeof(Callable) <= kSize && alignof(Callable) <= alignof(std::max_align_t) &&
               std::is_nothrow_move_constructible_v<Callable>;
    }

    // What the callable returns is dropped where nothing is to be returned.
    template <typename Callable>
    static Result Invoke(Callable& callable, Args&&... args) {
        if constexpr (std::is_void_v<Result>) {
            static_cast<void>(std::invoke(callable, std::forward<Args>(args)...));
        } else {
            return std::invoke(callable, std::forward<Args>(args)...);
        }
    }

    template <typename Callable>
    static constexpr Operations kInside{
        [](void* storage, Args&&... args) -> Result {
            return Invoke(*static_cast<Callable*>(storage), std::forward<Args>(args)...);
        },
        [](void* from, void* to) noexcept {
            auto* callable = static_cast<Callable*>(from);
            ::new (to) Callable(std::move(*callable));
            std::destroy_at(callable);
        },
        [](void* storage) noexcept { std::destroy_at(static_cast<Callable*>(storage)); }};

    template <typename Callable>
    static constexpr Operations kOnHeap{
        [](void* storage, Args&&... args) -> Result {
            return Invoke(**static_cast<Callable**>(storage), std::forward<Args>(args)...);
        },
        [](void* from, void* to) noexcept { ::new (to) Callable*(*static_cast<Callable**>(from)); },
        [](void* storage) noexcept { delete *static_cast<Callable**>(storage); }};

    void TakeFrom(UniqueFunction& other) noexcept {
        if (other.operations_ == nullptr) return;
        other.operations_->move(&other.storage_, &storage_);
        operations_ = std::exchange(other.operations_, nullptr);
    }

    void Reset() noexcept {
        if (operations_ != nullptr) std::exchange(operations_, nullptr)->destroy(&storage_);
    }

    alignas(std::max_align_t) std::byte storage_[kSize];
    const Operations* operations_ = nullptr;
};

}  // namespace mq::detail
