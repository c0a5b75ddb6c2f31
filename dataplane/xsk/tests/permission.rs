//! What is said where a privilege is missing.

mod support;

use support::*;
use tieline_xsk::area::Area;
use tieline_xsk::bpf::LoadError;
use tieline_xsk::filter::{Filter, FilterError};
use tieline_xsk::generator::{GeneratorError, Sink};
use tieline_xsk::packet::{PacketError, PacketSocket, Take};
use tieline_xsk::socket::{Mode, Socket, SocketError};

#[test]
fn each_missing_privilege_is_named() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();

        drop_capabilities(&[CAP_NET_RAW]);
        let error = Socket::bind(&area, a1, 0, Mode::NativeCopy, &small_rings()).unwrap_err();
        assert!(matches!(error, SocketError::Permission), "{error}");
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
        let error = PacketSocket::open(a1, Take::All).unwrap_err();
        assert!(matches!(error, PacketError::Permission), "{error}");
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");

        drop_capabilities(&[CAP_NET_ADMIN, CAP_SYS_ADMIN]);
        let error = Filter::gateway(&CONFIG).unwrap_err();
        let FilterError::Map { map: "sockets", source } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        let error = Sink::attach(a1, true).unwrap_err();
        let GeneratorError::Load(LoadError::Permission { name }) = &error else {
            panic!("{error}")
        };
        assert_eq!(name, "tieline_sink");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");

        drop_capabilities(&[CAP_BPF]);
        let error = Filter::gateway(&CONFIG).unwrap_err();
        let FilterError::Map { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_BPF"), "{error}");
    });
}
