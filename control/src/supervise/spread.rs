//! Which worker serves which queues.
//!
//! Every served queue belongs to one worker, and a worker's queues are of one
//! device, so that there is one way out for what it sends. A device's queues
//! are dealt out in turn: where a card uses only its first queues, all workers
//! of the device have some of them.
//!
//! One worker with all of its CPU's queues is better than several that share the
//! CPU: if they are busy, each waits for whole time slices of the others.

/// What a worker serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Which of the devices.
    pub(super) device: usize,
    /// The queues, lowest first; it sends by the first.
    pub(super) queues: Vec<u32>,
}

/// The shares of the workers, the first device's first. `queues` has the number
/// of queues of each device, at least one. `wanted` workers are made if there
/// are as many queues, and no more devices; `None`: one for each queue.
pub(super) fn spread(queues: &[u32], wanted: Option<u32>) -> Vec<Share> {
    let wanted = wanted.unwrap_or(u32::MAX).min(queues.iter().sum());
    let mut workers = vec![1; queues.len()];
    while workers.iter().sum::<u32>() < wanted {
        // One more where a worker has the most to do.
        let load = |at: &usize| queues[*at].div_ceil(workers[*at]);
        let Some(most) = (0..queues.len()).rev().max_by_key(load) else { break };
        workers[most] += 1;
    }
    let shares = queues.iter().zip(workers).enumerate().flat_map(|(device, (queues, workers))| {
        (0..workers).map(move |first| {
            let queues = (first..*queues).step_by(workers as usize).collect();
            Share { device, queues }
        })
    });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_out(queues: &[u32], wanted: Option<u32>) -> Vec<(usize, Vec<u32>)> {
        spread(queues, wanted).into_iter().map(|share| (share.device, share.queues)).collect()
    }

    #[test]
    fn a_worker_has_one_queue_or_its_part_of_them() {
        assert_eq!(spread_out(&[3], None), [(0, vec![0]), (0, vec![1]), (0, vec![2])]);
        assert_eq!(spread_out(&[3], Some(1)), [(0, vec![0, 1, 2])]);
        assert_eq!(spread_out(&[3], Some(2)), [(0, vec![0, 2]), (0, vec![1])]);
        assert_eq!(spread_out(&[1], Some(1)), [(0, vec![0])]);
    }

    #[test]
    fn there_are_no_more_workers_than_queues_and_no_fewer_than_devices() {
        assert_eq!(spread_out(&[2], Some(9)), [(0, vec![0]), (0, vec![1])]);
        assert_eq!(spread_out(&[2, 1], Some(1)), [(0, vec![0, 1]), (1, vec![0])]);
        assert_eq!(spread_out(&[], Some(4)), []);
    }

    #[test]
    fn workers_go_where_queues_are() {
        let most = |queues: &[u32], wanted| {
            let shares = spread(queues, Some(wanted));
            assert_eq!(shares.len(), wanted as usize);
            let of = |device| {
                let mut all: Vec<u32> = shares
                    .iter()
                    .filter(|share| share.device == device)
                    .flat_map(|share| share.queues.iter().copied())
                    .collect();
                all.sort_unstable();
                all
            };
            for (device, queues) in queues.iter().enumerate() {
                assert_eq!(of(device), (0..*queues).collect::<Vec<_>>(), "each queue once");
            }
            shares.iter().map(|share| share.queues.len()).max().unwrap_or_default()
        };
        assert_eq!(most(&[16], 2), 8);
        assert_eq!(most(&[16], 3), 6);
        assert_eq!(most(&[16, 2], 3), 8);
        assert_eq!(most(&[16, 2], 5), 4);
        assert_eq!(most(&[4, 4], 8), 1);
        assert_eq!(most(&[256], 255), 2);
    }
}
