//! Values of the project config that people write with a unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A size in bytes, written as a whole number with an optional unit K, M, G or T
/// (powers of 1024; "KiB" and "KB" mean the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct ByteSize(u64);

/// A length of time, written as a whole number with a unit s, m, h or d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// Why a value with a unit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// Not a size.
    #[error("{0:?} is not a size; write a whole number with a unit, such as 512M or 4G")]
    Size(String),
    /// Not a length of time.
    #[error(
        "{0:?} is not a length of time; write a whole number with a unit, such as 30s, 15m or 2h"
    )]
    Span(String),
}

fn split(text: &str) -> (Option<u64>, &str) {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    (number.parse().ok(), unit.trim())
}

impl ByteSize {
    /// A size of so many bytes.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    #[must_use]
    pub fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refuse = || InvalidValue::Size(text.to_owned());
        let (number, unit) = split(text);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(refuse()),
        };
        let bytes = number
            .and_then(|n| n.checked_mul(1 << shift))
            .ok_or_else(refuse)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.0, "");
        for next in ["K", "M", "G", "T"] {
            if number == 0 || !number.is_multiple_of(1024) {
                break;
            }
            (number, unit) = (number / 1024, next);
        }
        write!(f, "{number}{unit}")
    }
}

impl Span {
    /// The length of time.
    #[must_use]
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refuse = || InvalidValue::Span(text.to_owned());
        let (number, unit) = split(text);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(refuse()),
        };
        let seconds = number
            .and_then(|n| n.checked_mul(seconds))
            .ok_or_else(refuse)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.0.as_secs(), "s");
        for (size, next) in [(60, "m"), (60, "h"), (24, "d")] {
            if number == 0 || !number.is_multiple_of(size) {
                break;
            }
            (number, unit) = (number / size, next);
        }
        write!(f, "{number}{unit}")
    }
}

/// A plain number of bytes is a size too, and YAML does not make it a string.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a size such as 512M or 4G")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for ByteSize {
    type Error = InvalidValue;
    fn try_from(value: NumberOrText) -> Result<Self, InvalidValue> {
        match value {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        let of = |text: &str| text.parse::<ByteSize>().map(ByteSize::as_bytes);
        assert_eq!(of("0"), Ok(0));
        assert_eq!(of("512M"), Ok(512 << 20));
        assert_eq!(of("4GiB"), Ok(4 << 30));
        assert_eq!(of("1 k"), Ok(1024));
        for bad in ["", "G", "-1", "1.5G", "4X", "99999999999T", "4G4"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_length_of_time_needs_a_unit() {
        let of = |text: &str| text.parse::<Span>().map(|s| s.as_duration().as_secs());
        assert_eq!(of("2h"), Ok(7200));
        assert_eq!(of("90s"), Ok(90));
        for bad in ["", "2", "h", "1.5h", "2y", "-1s"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64, seconds in 0..u64::MAX) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
            let span = Span(Duration::from_secs(seconds));
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Span>();
        }
    }
}
