//! The limit on locked memory. In a file of its own: the limit is the
//! process's.

mod support;

use support::*;
use tieline_xsk::area::Area;
use tieline_xsk::memlock::{self, Limit};
use tieline_xsk::socket::{Mode, Socket, SocketError};

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;
const LIMIT: u64 = 256 << 10;

/// Takes capabilities from the calling thread.
fn drop_capabilities(numbers: &[u32]) {
    // _LINUX_CAPABILITY_VERSION_3 and the calling thread; effective, permitted
    // and inheritable for 32 capabilities, then for the next 32.
    let mut header = [0x2008_0522u32, 0];
    let mut sets = [[0u32; 3]; 2];
    let (header, data) = (header.as_mut_ptr(), sets.as_mut_ptr());
    // SAFETY: both are as long as this version demands.
    let got = unsafe { libc::syscall(libc::SYS_capget, header, data) };
    assert_eq!(got, 0);
    for number in numbers {
        for set in &mut sets[0] {
            *set &= !(1 << number);
        }
    }
    let data = sets.as_mut_ptr();
    // SAFETY: both are as long as this version demands.
    let set = unsafe { libc::syscall(libc::SYS_capset, header, data) };
    assert_eq!(set, 0);
}

#[test]
fn an_area_over_the_limit_is_refused_with_the_remedy() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let limit = libc::rlimit { rlim_cur: LIMIT / 2, rlim_max: LIMIT };
        // SAFETY: `limit` is valid for reading.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
        assert_eq!(set, 0);
        drop_capabilities(&[CAP_IPC_LOCK, CAP_SYS_RESOURCE]);
        assert_eq!(memlock::raise().unwrap(), Limit::Bytes(LIMIT), "up to the hard limit");

        let large = Area::new(512, 2048).unwrap();
        let bind = |area: &Area| Socket::bind(area, a1, 0, Mode::NativeCopy, &small_rings());
        let error = bind(&large).unwrap_err();
        let SocketError::Memlock { bytes, limit } = error else { panic!("{error}") };
        assert_eq!((bytes, limit), (1 << 20, Limit::Bytes(LIMIT)));
        let text = error.to_string();
        assert!(text.contains("262144 bytes") && text.contains("LimitMEMLOCK"), "{text}");
        bind(&Area::new(64, 2048).unwrap()).expect("a small area is within the limit");
    });
}
