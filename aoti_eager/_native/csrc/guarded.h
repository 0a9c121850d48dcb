// Errors at the C interface: no exception crosses it, and the last message waits for `ae_last_error`.

#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <utility>

namespace aoti_eager {

inline std::string& last_error() {
  static thread_local std::string message;
  return message;
}

// Returns whether the function ended without an exception.
template <class Function>
bool guarded(Function&& function) {
  try {
    function();
    return true;
  } catch (const c10::Error& error) {
    last_error() = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error() = error.what();
  } catch (...) {
    last_error() = "unknown exception";
  }
  return false;
}

} // namespace aoti_eager
