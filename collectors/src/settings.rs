//! Settings with units: `"64MiB"`, `"5m"`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// A text that is not a value of its unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {expected}")]
pub struct UnitError {
    found: String,
    expected: &'static str,
}

const INTERVAL: &str = "an interval such as \"500ms\", \"60s\", \"5m\" or \"1h\"";
const BYTES: &str = "a size such as \"512KiB\", \"64MiB\" or \"1GiB\"";

/// A duration: a whole number with `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub Duration);

/// A number of bytes: a whole number with `B`, `KiB`, `MiB`, `GiB` or `TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const INTERVAL_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const BYTE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn split(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl FromStr for Interval {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        split(text, &INTERVAL_UNITS)
            .map(|milliseconds| Self(Duration::from_millis(milliseconds)))
            .ok_or_else(|| UnitError { found: text.to_owned(), expected: INTERVAL })
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        split(text, &BYTE_UNITS).map(Self).ok_or_else(|| UnitError { found: text.to_owned(), expected: BYTES })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis() as u64;
        // Days are accepted but not printed: "24h" is clearer.
        let unit = INTERVAL_UNITS[..4].iter().rev().find(|(_, factor)| milliseconds.is_multiple_of(*factor));
        let (name, factor) = unit.expect("one millisecond divides everything");
        write!(f, "{}{name}", milliseconds / factor)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BYTE_UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (name, factor) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

macro_rules! as_text {
    ($($unit:ty, $name:literal, $expected:expr);*) => {$(
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $unit;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$unit, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
        impl JsonSchema for $unit {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "description": $expected})
            }
        }
    )*};
}
as_text!(Interval, "Interval", INTERVAL; Bytes, "Bytes", BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_written() {
        for (text, milliseconds) in [("500ms", 500), ("60s", 60_000), ("1h", 3_600_000), ("2d", 172_800_000)] {
            let interval: Interval = text.parse().expect(text);
            assert_eq!(interval.0, Duration::from_millis(milliseconds));
            assert_eq!(interval.to_string().parse(), Ok(interval));
        }
        assert_eq!("60s".parse::<Interval>().expect("valid").to_string(), "1m");
        assert_eq!("64MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!(Bytes(1536).to_string(), "1536B");
        assert_eq!(Bytes(1 << 30).to_string(), "1GiB");
        for wrong in ["", "5", "MiB", "64MB", "-1s", "99999999999999TiB", "1.5h"] {
            assert!(wrong.parse::<Bytes>().is_err() && wrong.parse::<Interval>().is_err(), "{wrong}");
        }
    }
}
