//! The limit on locked memory. In a file of its own: the limit is the
//! process's.

mod support;

use support::*;
use tieline_xsk::area::Area;
use tieline_xsk::memlock::{self, Limit};
use tieline_xsk::socket::{Mode, Socket, SocketError};

const LIMIT: u64 = 256 << 10;

#[test]
fn an_area_over_the_limit_is_refused_with_the_remedy() {
    in_namespace(|| {
        let (_, a1) = veth_of(2, "a0", "a1");
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
        // More than half of it, so that it can be there only once.
        let small = Area::new(96, 2048).unwrap();
        let first = bind(&small).expect("a small area is within the limit");
        let again = Socket::bind(&small, a1, 1, Mode::NativeCopy, &small_rings());
        assert!(matches!(again, Err(SocketError::Memlock { .. })), "{again:?}");
        first.beside(&small, 1, &small_rings()).expect("shares the first one's memory");
    });
}
