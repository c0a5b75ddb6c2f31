//! Which CPUs workers are on, and which ones they may be on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tieline_config::schema::Workers;
use tieline_dataplane::pin::Placed;
use tracing::warn;

use super::Daemon;
use super::kernel::Step;
use super::ports::Running;
use crate::state::{ClusterId, Condition, Severity};

impl Daemon {
    /// Tells every worker its CPU, and reports where that is not the one that it
    /// is on. CPUs come and go without a word, so this is done again and again.
    pub(super) fn place_workers(&mut self) {
        let mut conditions = Vec::new();
        if let Some(dataplane) = &mut self.dataplane {
            let workers = &self.config.current.workers;
            let usable = usable(workers);
            let cpus = workers.placement(dataplane.workers.len(), &usable);
            conditions.extend(unusable(&workers.forbidden(&usable), cpus.is_empty()));
            for (number, running) in dataplane.workers.iter_mut().enumerate() {
                running.shared.pin.assign(cpus.get(number).copied());
                let placed = running.shared.pin.placed();
                tell_lost(number, running, &placed);
                conditions.extend(misplaced(number, &placed));
            }
        }
        self.settle(Step::Cpus, "workers.cpus", Ok::<_, std::convert::Infallible>(conditions));
    }
}

/// The CPUs that workers may be given. Those that are listed may be any that the
/// kernel lets a thread go to. Without a list it is those that the daemon was
/// given: isolated ones are for who names them.
pub(super) fn usable(workers: &Workers) -> Vec<usize> {
    let set = if workers.cpus.is_some() { permitted() } else { own() };
    let set = set.unwrap_or_else(CpuSet::new);
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// The CPUs of the calling thread.
fn own() -> Option<CpuSet> {
    sched_getaffinity(None).ok()
}

/// The CPUs that a thread of this process may go to: those of its cpuset that
/// are online. The affinity that the process was started with leaves out
/// isolated CPUs and what `taskset` was not asked for, and forbids none of them.
/// Of CPUs to go to, the kernel takes those that it allows; so a thread asks for
/// all, and looks what it has got.
fn permitted() -> Option<CpuSet> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let ask = move || {
        // Where that is forbidden as such, the thread's own CPUs are the answer.
        let _ = sched_setaffinity(None, &all);
        own()
    };
    let asking = std::thread::Builder::new().name("tieline-cpus".into()).spawn(ask);
    asking.ok()?.join().ok()?
}

/// The worker has mended it already, or it is a condition.
fn tell_lost(number: usize, running: &mut Running, placed: &Placed) {
    if placed.lost > running.pins_lost {
        running.pins_lost = placed.lost;
        let again = placed.pinned == placed.wanted;
        warn!(worker = number, cpu = placed.wanted, again, "a worker was taken off its CPU");
    }
}

/// CPUs that workers were to be pinned to and can't be.
fn unusable(forbidden: &[usize], all: bool) -> Option<Condition> {
    let list: Vec<_> = forbidden.iter().map(ToString::to_string).collect();
    let instead = if all { "are not pinned" } else { "use the others of the list" };
    let condition = Condition {
        severity: Severity::Error,
        cluster: ClusterId::Local,
        object: "workers.cpus".to_owned(),
        message: format!(
            "the daemon may not run on CPU {}, or it is offline: its workers {instead}; widen \
             its cpuset, or correct the list",
            list.join(", ")
        ),
    };
    (!forbidden.is_empty()).then_some(condition)
}

/// A worker that isn't on the CPU that it was told to be on.
fn misplaced(number: usize, placed: &Placed) -> Option<Condition> {
    let wanted = placed.wanted.filter(|_| placed.pinned != placed.wanted)?;
    Some(Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: format!("worker {number}"),
        message: format!(
            "is not pinned to CPU {wanted}, and shares others (CPU {} just now): the kernel does \
             not let it go there; look at the cpuset of the daemon's cgroup",
            placed.on
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(cpus: Option<&str>) -> Workers {
        Workers { cpus: cpus.map(|list| list.parse().unwrap()), ..Workers::default() }
    }

    #[test]
    fn an_inherited_affinity_forbids_nothing() {
        let all = permitted().expect("CPUs");
        let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|cpu| all.is_set(*cpu)).unwrap();
        let mut one = CpuSet::new();
        one.set(first);
        sched_setaffinity(None, &one).unwrap();
        // What is listed may be any CPU, as an isolated one; what isn't is ours.
        let listed = workers(Some(&last.to_string()));
        assert_eq!(usable(&listed).len(), all.count() as usize);
        assert_eq!(listed.placement(2, &usable(&listed)), [last, last]);
        assert_eq!(workers(None).placement(2, &usable(&workers(None))), [first, first]);
        // To ask has moved nobody.
        assert_eq!(own(), Some(one));
    }

    #[test]
    fn cpus_that_cannot_be_used_are_reported() {
        assert_eq!(unusable(&[], false), None);
        let condition = unusable(&[6, 9], false).expect("two are not usable");
        assert_eq!((condition.severity, &*condition.object), (Severity::Error, "workers.cpus"));
        assert!(condition.message.contains("CPU 6, 9,"), "{}", condition.message);
        assert!(condition.message.contains("use the others"), "{}", condition.message);
        let condition = unusable(&[6], true).expect("none is usable");
        assert!(condition.message.contains("are not pinned"), "{}", condition.message);
    }

    #[test]
    fn a_worker_on_another_cpu_is_reported() {
        let there = Placed { wanted: Some(3), pinned: Some(3), on: 3, lost: 1 };
        assert_eq!(misplaced(0, &there), None);
        // Nothing was asked for, or it has not looked yet.
        assert_eq!(misplaced(0, &Placed { wanted: None, pinned: None, ..there }), None);
        assert_eq!(misplaced(0, &Placed::default()), None);
        for pinned in [None, Some(1)] {
            let condition = misplaced(2, &Placed { pinned, on: 1, ..there }).expect("elsewhere");
            assert_eq!((condition.severity, &*condition.object), (Severity::Warning, "worker 2"));
            assert!(condition.message.contains("CPU 3, and"), "{}", condition.message);
            assert!(condition.message.contains("(CPU 1 just"), "{}", condition.message);
        }
    }
}
