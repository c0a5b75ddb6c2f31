//! What is read from and set on devices.

mod support;

use support::*;
use tieline_xsk::device;

#[test]
fn a_veth_tells_what_it_is() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        ip("link set a1 address 02:11:22:33:44:55 mtu 1450");
        assert_eq!(device::name(a0).unwrap(), "a0");
        assert_eq!(device::index("a1").unwrap(), a1);
        assert_eq!(device::mac("a1").unwrap(), [2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!((device::mtu("a0").unwrap(), device::mtu("a1").unwrap()), (1500, 1450));
        assert_eq!(device::driver("a0").unwrap(), "veth");
        assert_eq!(device::channels("a0").unwrap(), 1);
    });
}

#[test]
fn offloads_go_off_and_on() {
    in_namespace(|| {
        veth("a0", "a1");
        assert!(!device::offloads_disabled("a0").unwrap());
        device::disable_offloads("a0").unwrap();
        assert!(device::offloads_disabled("a0").unwrap());
        assert!(!device::offloads_disabled("a1").unwrap(), "only the one that was named");
        device::disable_offloads("a0").unwrap();
        device::enable_offloads("a0").unwrap();
        assert!(!device::offloads_disabled("a0").unwrap());
    });
}

#[test]
fn a_device_that_can_not_change_its_offloads_is_no_error() {
    in_namespace(|| {
        device::disable_offloads("lo").unwrap();
    });
}

#[test]
fn offloads_are_put_back_as_they_were() {
    in_namespace(|| {
        veth("a0", "a1");
        device::disable_offloads("a0").unwrap();
        device::enable_receive_offload("a0").unwrap();
        let mixed = device::offloads("a0").unwrap();
        assert_ne!(mixed, device::offloads("a1").unwrap());
        device::enable_offloads("a0").unwrap();
        assert_ne!(device::offloads("a0").unwrap(), mixed);
        device::restore_offloads("a0", mixed).unwrap();
        assert_eq!(device::offloads("a0").unwrap(), mixed);
        assert!(device::offloads("nosuch0").is_err());
    });
}
