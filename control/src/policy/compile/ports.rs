//! Sets of 16-bit numbers: ports, or ICMP type and code.

use std::ops::RangeInclusive;

/// A set of numbers as ascending ranges that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// All numbers.
    pub(super) fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The numbers of some ranges; a range that is upside down has none.
    pub(super) fn of(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|(low, high)| low <= high).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (low, high) in sorted {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    /// Whether the set has no numbers.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the set has all numbers.
    pub(super) fn is_all(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }

    /// The numbers that are not in the set.
    pub(super) fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut next = 0u32;
        for (low, high) in &self.0 {
            if u32::from(*low) > next {
                gaps.push((next as u16, low - 1));
            }
            next = u32::from(*high) + 1;
        }
        if next <= u32::from(u16::MAX) {
            gaps.push((next as u16, u16::MAX));
        }
        Self(gaps)
    }

    /// The numbers that are in both sets.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let (low, high) = (x.0.max(y.0), x.1.min(y.1));
            if low <= high {
                both.push((low, high));
            }
            if x.1 < y.1 {
                a.next();
            } else {
                b.next();
            }
        }
        Self(both)
    }

    /// The numbers that are in either set.
    pub(super) fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied())
    }

    /// The form that clauses have: `None` stands for all numbers.
    pub(super) fn to_clause(&self) -> Option<Vec<RangeInclusive<u16>>> {
        (!self.is_all()).then(|| self.0.iter().map(|(low, high)| *low..=*high).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
        let port = prop_oneof![0u16..12, 65530u16..=65535];
        prop::collection::vec((port.clone(), port), 0..5)
    }

    fn has(ranges: &[(u16, u16)], port: u16) -> bool {
        ranges.iter().any(|(low, high)| (*low..=*high).contains(&port))
    }

    proptest! {
        #[test]
        fn sets_agree_with_asking_each_number(a in ranges(), b in ranges()) {
            let (x, y) = (PortSet::of(a.iter().copied()), PortSet::of(b.iter().copied()));
            let (both, either, not) = (x.intersection(&y), x.union(&y), x.complement());
            for port in (0..14).chain(65528..=65535) {
                prop_assert_eq!(has(&x.0, port), has(&a, port));
                prop_assert_eq!(has(&both.0, port), has(&a, port) && has(&b, port));
                prop_assert_eq!(has(&either.0, port), has(&a, port) || has(&b, port));
                prop_assert_eq!(has(&not.0, port), !has(&a, port));
            }
            prop_assert_eq!(not.complement(), x.clone());
            prop_assert_eq!(x.union(&not), PortSet::all());
            prop_assert!(x.intersection(&not).is_empty());
        }
    }
}
