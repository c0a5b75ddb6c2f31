//! In which of consecutive ranges of ports a port lies.

/// Up to so many ranges are searched: fewer steps than the other way takes, and
/// less memory.
const FEW: usize = 32;

/// Ports of one [`Block`].
const BLOCK: usize = 64;

/// Ranges of ports without gaps, the first from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ranges {
    /// First ports, ascending.
    Few(Box<[u16]>),
    /// All ports: any number of ranges costs the same. 16 KiB.
    Many(Box<[Block]>),
}

/// Consecutive ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// The ports, the lowest first, at which a range begins.
    starts: u64,
    /// Ranges that begin before these ports.
    before: u32,
}

impl Ranges {
    /// The ranges that begin at these ports: ascending, the first is 0.
    pub(super) fn new(starts: Vec<u16>) -> Self {
        if starts.len() <= FEW {
            return Self::Few(starts.into());
        }
        let mut blocks = vec![Block { starts: 0, before: 0 }; (u16::MAX as usize + 1) / BLOCK];
        for start in starts.iter().map(|start| usize::from(*start)) {
            blocks[start / BLOCK].starts |= 1 << (start % BLOCK);
        }
        let mut before = 0;
        for block in &mut blocks {
            block.before = before;
            before += block.starts.count_ones();
        }
        Self::Many(blocks.into())
    }

    /// The number, from 0, of the range that `port` lies in.
    #[inline]
    pub(super) fn of(&self, port: u16) -> usize {
        let begun = match self {
            Self::Few(starts) => starts.partition_point(|start| *start <= port),
            Self::Many(blocks) => {
                let block = &blocks[usize::from(port) / BLOCK];
                let upto = u64::MAX >> (BLOCK - 1 - usize::from(port) % BLOCK);
                (block.before + (block.starts & upto).count_ones()) as usize
            }
        };
        begun.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both forms, over all ports, against counting.
    #[test]
    fn every_port_is_in_its_range() {
        let many = |step: usize| (0..=u16::MAX).step_by(step).collect::<Vec<u16>>();
        let edges = vec![0, 1, 63, 64, 65, 127, 128, 0x7fff, 0x8000, 0xfffe, 0xffff];
        for starts in [vec![0], edges, many(2100), many(2000), many(7), many(1)] {
            let ranges = Ranges::new(starts.clone());
            assert_eq!(matches!(ranges, Ranges::Few(_)), starts.len() <= FEW);
            let mut range = 0;
            for port in 0..=u16::MAX {
                if starts.get(range + 1) == Some(&port) {
                    range += 1;
                }
                assert_eq!(ranges.of(port), range, "{port} of {} ranges", starts.len());
            }
        }
    }
}
