//! Lists of CPUs, in the notation of the kernel's `cpuset` files: `2-3,6`.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// The kernel can't be built for more.
const MOST_CPUS: usize = 8192;

/// CPU numbers without repetition, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// Why a text is not a list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// There is nothing in it.
    #[error("an empty list of CPUs; name at least one, such as \"2\"")]
    Empty,
    /// A part is neither a number nor a range.
    #[error("`{0}` in a list of CPUs is neither a number nor a range; write such as \"2-3,6\"")]
    Part(String),
    /// A range that ends before it begins.
    #[error("the range of CPUs `{0}` ends before it begins; write the lower number first")]
    Backwards(String),
    /// Beyond what the kernel can number.
    #[error("CPU {0} can't exist; the kernel numbers them from 0 to {max}", max = MOST_CPUS - 1)]
    TooLarge(usize),
    /// A CPU is named more than once.
    #[error("CPU {0} is named twice; name each once")]
    Repeated(usize),
}

impl CpuList {
    /// The CPUs, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        if text.trim().is_empty() {
            return Err(CpuListError::Empty);
        }
        let mut cpus = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = range(part)?;
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(CpuListError::Repeated(cpu));
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }
}

fn range(part: &str) -> Result<(usize, usize), CpuListError> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number = if plain { digits.parse().ok() } else { None };
        number.ok_or_else(|| CpuListError::Part(part.to_owned()))
    };
    let (first, last) = match part.split_once('-') {
        Some((first, last)) => (number(first.trim())?, number(last.trim())?),
        None => (number(part)?, number(part)?),
    };
    if last >= MOST_CPUS {
        return Err(CpuListError::TooLarge(last));
    }
    if last < first {
        return Err(CpuListError::Backwards(part.to_owned()));
    }
    Ok((first, last))
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs = self.0.chunk_by(|a, b| a + 1 == *b).peekable();
        while let Some(run) = runs.next() {
            match run {
                [one] => write!(f, "{one}")?,
                [first, .., last] => write!(f, "{first}-{last}")?,
                [] => {}
            }
            if runs.peek().is_some() {
                f.write_str(",")?;
            }
        }
        Ok(())
    }
}

impl Serialize for CpuList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = CpuList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of CPUs such as \"2-3,6\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuList, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_their_order_and_written_back() {
        for (text, cpus, written) in [
            ("0", &[0][..], "0"),
            ("2-3,6", &[2, 3, 6], "2-3,6"),
            (" 6 , 2 - 3 ", &[6, 2, 3], "6,2-3"),
            ("1,2,3,5", &[1, 2, 3, 5], "1-3,5"),
            ("7-7", &[7], "7"),
            ("8191", &[8191], "8191"),
        ] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(list.iter().collect::<Vec<_>>(), cpus, "{text}");
            assert_eq!(list.to_string(), written, "{text}");
            assert_eq!(written.parse::<CpuList>(), Ok(list), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let part = |text: &str| CpuListError::Part(text.to_owned());
        for (text, error) in [
            ("", CpuListError::Empty),
            ("  ", CpuListError::Empty),
            ("a", part("a")),
            ("1,", part("")),
            ("1-", part("1-")),
            ("-1", part("-1")),
            ("+1", part("+1")),
            ("1-2-3", part("1-2-3")),
            ("99999999999999999999999", part("99999999999999999999999")),
            ("3-2", CpuListError::Backwards("3-2".into())),
            ("0-8192", CpuListError::TooLarge(8192)),
            ("0-4294967295", CpuListError::TooLarge(4_294_967_295)),
            ("1-3,2", CpuListError::Repeated(2)),
        ] {
            assert_eq!(text.parse::<CpuList>(), Err(error), "{text}");
        }
    }
}
