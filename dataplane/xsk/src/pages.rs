//! What pages memory is on, as the kernel tells in `/proc/self/smaps`.

use std::ops::Range;

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageUse {
    /// What is there, whatever it is on.
    pub resident: usize,
    /// What of it is on huge pages, reserved and transparent ones.
    pub huge: usize,
}

/// All memory of this process; zeros where the kernel doesn't tell.
pub fn of_process() -> PageUse {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    of_rollup(&rollup)
}

/// Bytes of these ranges of addresses together that are on huge pages; zero where
/// the kernel doesn't tell. It counts by mappings: of one that is partly on huge
/// pages and partly within a range, this is an estimate.
pub fn huge_bytes(ranges: &[Range<usize>]) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    ranges.iter().map(|range| huge_bytes_of(&smaps, range)).sum()
}

fn of_rollup(rollup: &str) -> PageUse {
    // Reserved pages are not part of what is called resident.
    let rss: usize = rollup.lines().filter_map(|line| kib(line, "Rss:")).sum();
    let reserved: usize = rollup.lines().filter_map(reserved).sum();
    let transparent: usize = rollup.lines().filter_map(transparent).sum();
    PageUse { resident: rss + reserved, huge: transparent + reserved }
}

fn huge_bytes_of(smaps: &str, range: &Range<usize>) -> usize {
    let (mut inside, mut mapping) = (0, 1);
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some(area) = address_range(line) {
            inside = area.end.min(range.end).saturating_sub(area.start.max(range.start));
            mapping = area.len().max(1);
        } else if let Some(huge) = transparent(line).or_else(|| reserved(line)) {
            bytes += (huge as u128 * inside as u128 / mapping as u128) as usize;
        }
    }
    bytes
}

fn transparent(line: &str) -> Option<usize> {
    kib(line, "AnonHugePages:")
}

fn reserved(line: &str) -> Option<usize> {
    kib(line, "Private_Hugetlb:")
}

/// A line's value in bytes: `Rss:   4096 kB`.
fn kib(line: &str, name: &str) -> Option<usize> {
    let value = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    Some(value.trim().parse::<usize>().ok()? * 1024)
}

/// The range that a heading of smaps names: `7f00-7f10 rw-p ...`.
fn address_range(line: &str) -> Option<Range<usize>> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
Private_Hugetlb:       0 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
Private_Hugetlb:       0 kB
7f0000800000-7f0000801000 rw-p 00000000 00:00 0  [heap]
AnonHugePages:         0 kB
7f0001000000-7f0001200000 rw-p 00000000 00:0f 31  /anon_hugepage (deleted)
AnonHugePages:         0 kB
Private_Hugetlb:    2048 kB
";

    #[test]
    fn huge_pages_are_counted_inside_the_range_only() {
        let at = |start: usize, end: usize| {
            huge_bytes_of(SMAPS, &(0x7f00_0000_0000 + start..0x7f00_0000_0000 + end))
        };
        assert_eq!(at(0, 0x40_0000), 4 << 20);
        assert_eq!(at(0x20_0000, 0x40_0000), 2 << 20);
        // Half of the second mapping, half of which is on huge pages.
        assert_eq!(at(0, 0x60_0000), 5 << 20);
        assert_eq!(at(0x80_0000, 0x80_1000), 0);
        assert_eq!(at(0x90_0000, 0x200_0000), 2 << 20, "reserved ones");
        assert_eq!(huge_bytes_of("nonsense\n-\n", &(0..usize::MAX)), 0);
    }

    #[test]
    fn the_process_has_memory() {
        let rollup = "Rss:  9000 kB\nAnonHugePages: 4096 kB\nShared_Hugetlb: 0 kB\n\
                      Private_Hugetlb: 2048 kB\n";
        let expected = PageUse { resident: 11_048 << 10, huge: 6 << 20 };
        assert_eq!(of_rollup(rollup), expected);
        assert_eq!(of_rollup(""), PageUse::default());
        let own = of_process();
        assert!(own.resident > 0 && own.huge <= own.resident, "{own:?}");
    }
}
