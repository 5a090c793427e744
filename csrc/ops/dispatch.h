// Calls of segloss's own operators.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <type_traits>
#include <utility>

namespace segloss {

// The operator `segloss::name`. One of its implementations, `function`, gives the signature.
template <auto function> auto find_operator(const std::string& name) {
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow(("segloss::" + name).c_str(), "")
        .template typed<std::remove_pointer_t<decltype(function)>>();
}

// Calls it through the dispatcher, so that transforms, tracers and devices take part.
template <auto function, typename... Arguments>
decltype(auto) call_operator(const char* name, Arguments&&... arguments) {
    static const auto handle = find_operator<function>(name);
    return handle.call(std::forward<Arguments>(arguments)...);
}

} // namespace segloss
