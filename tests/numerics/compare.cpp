// Compares eager's results and compiled ones with exact values, one chunk a call.
//
// Built as strict IEEE code: no -ffast-math, because NaN, infinities and signs are what it is about.
// A region is a binade: the sign and the exponent of the element's key as a double.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int kRegions = 4096;
constexpr int kInputs = 3;
constexpr int kExamples = 3;

// One element, as Python prints it. Inputs are raw bits.
struct Example {
  std::uint64_t inputs[kInputs];
  double eager;
  double compiled;
  double exact;
  double ulp_eager;
  double ulp_compiled;
};

// The worst of a region; ``counts`` elements had an error that was looked at.
struct Region {
  double ulp_eager;
  double ulp_compiled;
  std::int64_t over;  // Elements where compiled code is beyond the floor and worse than eager.
  Example worst;
};

struct Summary {
  std::int64_t values;
  std::int64_t differing;
  std::int64_t nan_mismatches;
  std::int64_t inf_mismatches;
  std::int64_t nearer;  // NaN or infinity differs, and the exact value is as in compiled code.
  std::int64_t zero_signs;
  std::int64_t unreferenced;  // Finite results whose exact value is not known: eager stood for it.
  std::int64_t exact_differing;  // Integers and booleans.
  Example nan_examples[kExamples];
  Example inf_examples[kExamples];
  Example nearer_examples[kExamples];
  Example zero_examples[kExamples];
  Example exact_examples[kExamples];
};

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};

template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

double widened(double value) { return value; }
double widened(float value) { return static_cast<double>(value); }
double widened(BFloat value) {
  return bits_as<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
double widened(Half value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) {
    return bits_as<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  }
  // The exponent is moved by a multiplication, which is exact and makes subnormals normal.
  const float magnitude = bits_as<float>(rest << 13) * 0x1p112f;
  return bits_as<float>(sign | bits_as<std::uint32_t>(magnitude));
}

// Digits of the significand, and the exponents of the smallest normal and the largest number.
template <typename T>
struct Format;
template <>
struct Format<Half> {
  static constexpr int digits = 11, least = -14, most = 15;
};
template <>
struct Format<BFloat> {
  static constexpr int digits = 8, least = -126, most = 127;
};
template <>
struct Format<float> {
  static constexpr int digits = 24, least = -126, most = 127;
};
template <>
struct Format<double> {
  static constexpr int digits = 53, least = -1022, most = 1023;
};

int exponent_of(double value) {
  return static_cast<int>((bits_as<std::uint64_t>(value) >> 52) & 0x7ff) - 1023;
}

int region_of(double key) { return static_cast<int>(bits_as<std::uint64_t>(key) >> 52); }

// 2^exponent, also where that is subnormal.
double power(int exponent) { return std::ldexp(1.0, exponent); }

// The distance of two neighbours of the format where the exact value lies.
template <typename T>
double ulp_of(double exact) {
  int exponent = exponent_of(exact);
  exponent = exponent < Format<T>::least ? Format<T>::least : exponent;
  exponent = exponent > Format<T>::most ? Format<T>::most : exponent;
  const int ulp = exponent - Format<T>::digits + 1;
  if (ulp >= -1022) {
    return bits_as<double>(static_cast<std::uint64_t>(ulp + 1023) << 52);
  }
  return power(ulp);
}

template <typename T, typename Exact>
double error_in_ulp(double value, Exact exact, double ulp) {
  const Exact distance = static_cast<Exact>(value) - exact;
  return static_cast<double>((distance < 0 ? -distance : distance) / static_cast<Exact>(ulp));
}

// Whether the exact value, rounded to the format, is finite.
template <typename T>
bool rounds_to_finite(double exact) {
  if (!std::isfinite(exact)) {
    return false;
  }
  // Half an ulp above the largest number, where rounding to even gives infinity.
  const double limit = power(Format<T>::most) * (2.0 - std::ldexp(1.0, -Format<T>::digits));
  return std::fabs(exact) < limit;
}

// Whether a value is finite, or the infinity, that the exact value is when it is rounded; what is
// not known is of no kind.
template <typename T>
bool is_of_kind(double value, double exact) {
  if (std::isnan(value) || std::isnan(exact)) {
    return false;
  }
  if (rounds_to_finite<T>(exact)) {
    return std::isfinite(value);
  }
  return std::isinf(value) && std::signbit(value) == std::signbit(exact);
}

struct Inputs {
  const void* data[kInputs];
  std::int32_t sizes[kInputs];  // Bytes an element; 0 for none.
};

std::uint64_t raw(const Inputs& inputs, int which, std::int64_t index) {
  std::uint64_t bits = 0;
  const int size = inputs.sizes[which];
  if (size > 0 && size <= 8) {
    std::memcpy(&bits, static_cast<const char*>(inputs.data[which]) + index * size, size);
  }
  return bits;
}

void fill(Example& into, const Inputs& inputs, std::int64_t index, double eager, double compiled,
          double exact, double ulp_eager, double ulp_compiled) {
  for (int i = 0; i < kInputs; ++i) {
    into.inputs[i] = raw(inputs, i, index);
  }
  into.eager = eager;
  into.compiled = compiled;
  into.exact = exact;
  into.ulp_eager = ulp_eager;
  into.ulp_compiled = ulp_compiled;
}

template <typename T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// exact: null where eager stands for the exact values.
// keys: what an element's region is read from; null for the exact values themselves.
template <typename T, typename Exact>
void compare(const T* eager, const T* compiled, const Exact* exact, const double* keys,
             const Inputs& inputs, std::int64_t count, double floor, Region* regions,
             Summary& summary) {
  summary.values += count;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t i = 0; i < count; ++i) {
    const bool differ = !same_bits(eager[i], compiled[i]);
    if (!differ && exact == nullptr) {
      continue;
    }
    const double e = widened(eager[i]);
    const double c = differ ? widened(compiled[i]) : e;
    const Exact truth = exact == nullptr ? static_cast<Exact>(e) : exact[i];
    const double x = static_cast<double>(truth);
    if (differ) {
      const bool e_nan = std::isnan(e), c_nan = std::isnan(c);
      if (e_nan && c_nan) {
        continue;
      }
      ++summary.differing;
      const bool infinite = std::isinf(e) || std::isinf(c);
      if (e_nan || c_nan || infinite) {
        if (e == c) {
          continue;
        }
        const bool is_nearer =
            exact != nullptr && is_of_kind<T>(c, x) && !is_of_kind<T>(e, x);
        std::int64_t& number = is_nearer ? summary.nearer
                               : (e_nan || c_nan) ? summary.nan_mismatches
                                                  : summary.inf_mismatches;
        Example* examples = is_nearer ? summary.nearer_examples
                            : (e_nan || c_nan) ? summary.nan_examples
                                               : summary.inf_examples;
        if (number < kExamples) {
          fill(examples[number], inputs, i, e, c, x, nan, nan);
        }
        ++number;
        continue;
      } else if (e == 0.0 && c == 0.0) {
        if (summary.zero_signs < kExamples) {
          fill(summary.zero_examples[summary.zero_signs], inputs, i, e, c, x, 0.0, 0.0);
        }
        ++summary.zero_signs;
        continue;
      }
    } else if (!std::isfinite(e)) {
      continue;
    }
    Exact reference = truth;
    if (!std::isfinite(x)) {
      if (!std::isfinite(e)) {
        continue;
      }
      summary.unreferenced += differ;
      reference = static_cast<Exact>(e);
    }
    const double magnitude = static_cast<double>(reference);
    const double ulp = ulp_of<T>(magnitude);
    const double e_error = error_in_ulp<T>(e, reference, ulp);
    const double c_error = differ ? error_in_ulp<T>(c, reference, ulp) : e_error;
    Region& region = regions[region_of(keys == nullptr ? magnitude : keys[i])];
    if (e_error > region.ulp_eager) {
      region.ulp_eager = e_error;
    }
    if (c_error > region.ulp_compiled) {
      region.ulp_compiled = c_error;
      if (c_error > floor) {
        fill(region.worst, inputs, i, e, c, x, e_error, c_error);
      }
    }
    region.over += c_error > floor && c_error > e_error;
  }
}

// Integers and booleans: the bytes are the value.
void compare_bytes(const char* eager, const char* compiled, std::int64_t size, const Inputs& inputs,
                   std::int64_t count, Summary& summary) {
  summary.values += count;
  if (std::memcmp(eager, compiled, static_cast<std::size_t>(count * size)) == 0) {
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::memcmp(eager + i * size, compiled + i * size, static_cast<std::size_t>(size)) != 0) {
      if (summary.exact_differing < kExamples) {
        std::int64_t e = 0, c = 0;
        std::memcpy(&e, eager + i * size, static_cast<std::size_t>(size));
        std::memcpy(&c, compiled + i * size, static_cast<std::size_t>(size));
        fill(summary.exact_examples[summary.exact_differing], inputs, i, static_cast<double>(e),
             static_cast<double>(c), 0.0, 0.0, 0.0);
      }
      ++summary.exact_differing;
    }
  }
}

}  // namespace

extern "C" {

// Returns 0, or 1 for a kind that is not known.
// kind: 0 float16, 1 bfloat16, 2 float32, 3 float64, 4 float64 with long double exact values,
// 5 any bytes of ``size``.
int numerics_compare(int kind, const void* eager, const void* compiled, const void* exact,
                     const double* keys, const Inputs* inputs, std::int64_t count,
                     std::int64_t size, double floor, Region* regions, Summary* summary) {
  switch (kind) {
    case 0:
      compare(static_cast<const Half*>(eager), static_cast<const Half*>(compiled),
              static_cast<const double*>(exact), keys, *inputs, count, floor, regions, *summary);
      return 0;
    case 1:
      compare(static_cast<const BFloat*>(eager), static_cast<const BFloat*>(compiled),
              static_cast<const double*>(exact), keys, *inputs, count, floor, regions, *summary);
      return 0;
    case 2:
      compare(static_cast<const float*>(eager), static_cast<const float*>(compiled),
              static_cast<const double*>(exact), keys, *inputs, count, floor, regions, *summary);
      return 0;
    case 3:
      compare(static_cast<const double*>(eager), static_cast<const double*>(compiled),
              static_cast<const double*>(exact), keys, *inputs, count, floor, regions, *summary);
      return 0;
    case 4:
      compare(static_cast<const double*>(eager), static_cast<const double*>(compiled),
              static_cast<const long double*>(exact), keys, *inputs, count, floor, regions,
              *summary);
      return 0;
    case 5:
      compare_bytes(static_cast<const char*>(eager), static_cast<const char*>(compiled), size,
                    *inputs, count, *summary);
      return 0;
    default:
      return 1;
  }
}

// Writes a Bessel function of each value: which is 0 to 3 for j0, j1, y0, y1.
void numerics_bessel(int which, const double* values, double* results, std::int64_t count) {
  double (*const functions[])(double) = {::j0, ::j1, ::y0, ::y1};
  for (std::int64_t i = 0; i < count; ++i) {
    results[i] = functions[which](values[i]);
  }
}

// So that Python can check that it reads these structures as they are.
std::int64_t numerics_sizes(int which) {
  return which == 0   ? static_cast<std::int64_t>(sizeof(Region))
         : which == 1 ? static_cast<std::int64_t>(sizeof(Summary))
                      : kRegions;
}
}
