// The C functions of recordings, a part of `beside_ops.cpp`'s interface; `recorder.py` calls them.

#pragma once

#include "guarded.h"
#include "recorder.h"

#pragma GCC visibility push(default)
extern "C" {

// Begins to record this thread's calls; null if the thread is recording already.
aoti_eager::Recording* ae_recording_begin(size_t most_calls, size_t most_bytes) {
  aoti_eager::Recording* recording = nullptr;
  aoti_eager::guarded(
      [&] { recording = aoti_eager::begin_recording(most_calls, most_bytes); });
  return recording;
}

// Ends a recording and gives its text, which lives as long as the recording. Null if another thread
// began it: that thread frees it, and it must not be used any more.
const char* ae_recording_end(aoti_eager::Recording* recording, size_t* length) {
  const char* text = nullptr;
  if (!recording->is_of_this_thread()) {
    recording->abandon();
    aoti_eager::last_error() = "another thread began the recording";
    return nullptr;
  }
  aoti_eager::guarded([&] {
    const std::string& finished = recording->finish();
    *length = finished.size();
    text = finished.c_str();
  });
  if (text == nullptr) {
    delete recording;
  }
  return text;
}

// Gives the numbers of those tensors of an ended recording that are alive, as a text that lives until
// the next call.
const char* ae_recording_tensors_alive(aoti_eager::Recording* recording) {
  const char* text = nullptr;
  aoti_eager::guarded([&] { text = recording->tensors_alive().c_str(); });
  return text;
}

void ae_recording_delete(aoti_eager::Recording* recording) {
  delete recording;
}

// Whether this thread is recording.
int32_t ae_is_recording() {
  return aoti_eager::current_recording() != nullptr;
}

int64_t ae_recordings_alive() {
  return aoti_eager::Recording::alive();
}

} // extern "C"
#pragma GCC visibility pop
