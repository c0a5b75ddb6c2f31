//! What a port has to know of a network device, and the few settings that a
//! port depends on. Devices are those of the calling thread's network
//! namespace.

use std::ffi::{CStr, CString, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys;

pub(crate) mod xdp;

/// A request about a device that failed.
#[derive(Debug, thiserror::Error)]
#[error("device {device}: {request}: {source}")]
pub struct DeviceError {
    /// The device's name, or its index where that is what was given.
    pub device: String,
    /// What was asked for.
    pub request: &'static str,
    /// The kernel's reason.
    pub source: io::Error,
}

fn failed(device: &str, request: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError { device: device.to_owned(), request, source }
}

/// The index of a device.
///
/// # Errors
/// When there is no such device.
pub fn index(name: &str) -> Result<u32, DeviceError> {
    let request = "looking up the index";
    let c_name = CString::new(name)
        .map_err(|_| failed(name, request)(io::Error::from_raw_os_error(libc::ENODEV)))?;
    // SAFETY: the name is valid for reading and ends in zero.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(failed(name, request)(io::Error::last_os_error())),
        index => Ok(index),
    }
}

/// The name of a device.
///
/// # Errors
/// When there is no such device.
pub fn name(index: u32) -> Result<String, DeviceError> {
    let mut buffer = [0u8; libc::IFNAMSIZ];
    // SAFETY: the buffer is as long as the call demands.
    let found = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) };
    if found.is_null() {
        let error = io::Error::last_os_error();
        return Err(failed(&index.to_string(), "looking up the name")(error));
    }
    Ok(text(&buffer))
}

/// Number of receive queues as AF_XDP counts them: 1 where the driver does not
/// tell.
///
/// # Errors
/// When there is no such device.
pub fn channels(name: &str) -> Result<u32, DeviceError> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    match ethtool(name, &mut channels) {
        Ok(()) => Ok((channels.combined + channels.rx).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(failed(name, "counting queues")(error)),
    }
}

/// The driver's name: `virtio_net`, `mlx5_core`, `veth`.
///
/// # Errors
/// When there is no such device, or the driver does not tell.
pub fn driver(name: &str) -> Result<String, DeviceError> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, ..DriverInfo::default() };
    ethtool(name, &mut info).map_err(failed(name, "asking for the driver"))?;
    Ok(text(&info.driver))
}

/// The device's Ethernet address.
///
/// # Errors
/// When there is no such device.
pub fn mac(name: &str) -> Result<[u8; 6], DeviceError> {
    let request = device_request(name, libc::SIOCGIFHWADDR)
        .map_err(failed(name, "asking for the Ethernet address"))?;
    // SAFETY: the kernel has filled this member in; any bytes are a sockaddr.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(mac)
}

/// The device's MTU in bytes, without the Ethernet header.
///
/// # Errors
/// When there is no such device.
pub fn mtu(name: &str) -> Result<u32, DeviceError> {
    let request =
        device_request(name, libc::SIOCGIFMTU).map_err(failed(name, "asking for the MTU"))?;
    // SAFETY: the kernel has filled this member in; any bits are a number.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// The offloads that decide whether frames arrive complete.
const OFFLOADS: [(u32, u32, &str); 6] = [
    (ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM, "transmit checksum offload"),
    (ETHTOOL_GTSO, ETHTOOL_STSO, "TCP segmentation offload"),
    (ETHTOOL_GGSO, ETHTOOL_SGSO, "generic segmentation offload"),
    (ETHTOOL_GGRO, ETHTOOL_SGRO, "generic receive offload"),
    (ETHTOOL_GSG, ETHTOOL_SSG, "scatter-gather"),
    (ETHTOOL_GRXCSUM, ETHTOOL_SRXCSUM, "receive checksum offload"),
];

/// Which of these a device had at some moment; `None`: its driver does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads([Option<bool>; OFFLOADS.len()]);

/// Switches a device's checksum and segmentation offloads off, so that the
/// kernel finishes checksums and cuts segments before a frame leaves through
/// it. For the end of a veth that faces the kernel, and the other.
///
/// What the driver has fixed, or does not know, is left as it is.
///
/// # Errors
/// When there is no such device, or `CAP_NET_ADMIN` is missing.
pub fn disable_offloads(name: &str) -> Result<(), DeviceError> {
    set_offloads(name, Offloads([Some(false); OFFLOADS.len()]))
}

/// Switches them on again.
///
/// # Errors
/// As [`disable_offloads`].
pub fn enable_offloads(name: &str) -> Result<(), DeviceError> {
    set_offloads(name, Offloads([Some(true); OFFLOADS.len()]))
}

/// Which of them are on, to be put back with [`restore_offloads`].
///
/// # Errors
/// When there is no such device.
pub fn offloads(name: &str) -> Result<Offloads, DeviceError> {
    let mut all = Offloads::default();
    for ((get, _, what), state) in OFFLOADS.into_iter().zip(&mut all.0) {
        let mut value = Value { command: get, data: 0 };
        match ethtool(name, &mut value) {
            Ok(()) => *state = Some(value.data != 0),
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(failed(name, what)(error)),
        }
    }
    Ok(all)
}

/// Puts a device's offloads back to what they were.
///
/// # Errors
/// As [`disable_offloads`].
pub fn restore_offloads(name: &str, offloads: Offloads) -> Result<(), DeviceError> {
    set_offloads(name, offloads)
}

/// What the driver has fixed, or does not know.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// Switches generic receive offload on, and nothing else: it gives a veth the
/// context in which it takes redirected frames without a program of its own.
///
/// # Errors
/// As [`disable_offloads`].
pub fn enable_receive_offload(name: &str) -> Result<(), DeviceError> {
    let mut value = Value { command: ETHTOOL_SGRO, data: 1 };
    ethtool(name, &mut value).map_err(failed(name, "generic receive offload"))
}

fn set_offloads(name: &str, wanted: Offloads) -> Result<(), DeviceError> {
    for ((_, command, what), on) in OFFLOADS.into_iter().zip(wanted.0) {
        let Some(on) = on else { continue };
        let mut value = Value { command, data: u32::from(on) };
        match ethtool(name, &mut value) {
            Ok(()) => {}
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(failed(name, what)(error)),
        }
    }
    Ok(())
}

/// Whether the device finishes no checksums and cuts no segments for those who
/// send through it, so that what it carries is complete.
///
/// # Errors
/// When there is no such device.
pub fn offloads_disabled(name: &str) -> Result<bool, DeviceError> {
    for command in [ETHTOOL_GTXCSUM, ETHTOOL_GTSO, ETHTOOL_GGSO] {
        let mut value = Value { command, data: 0 };
        ethtool(name, &mut value).map_err(failed(name, "asking for offloads"))?;
        if value.data != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

// === linux/ethtool.h ===

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_SRXCSUM: u32 = 0x15;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GSG: u32 = 0x18;
const ETHTOOL_SSG: u32 = 0x19;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_GGSO: u32 = 0x23;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const SIOCETHTOOL: c_ulong = 0x8946;

/// A structure that `SIOCETHTOOL` reads and writes: it begins with the command,
/// and is as long as that command's structure.
///
/// # Safety
/// Both must hold, and every pattern of bits must be a value of the type.
unsafe trait Ethtool {}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

// SAFETY: as in the header, for the commands that get or set one number.
unsafe impl Ethtool for Value {}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

// SAFETY: as in the header, for ETHTOOL_GCHANNELS.
unsafe impl Ethtool for Channels {}

/// `struct ethtool_drvinfo`.
#[repr(C)]
#[derive(Default)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

// SAFETY: as in the header, for ETHTOOL_GDRVINFO.
unsafe impl Ethtool for DriverInfo {}

fn ethtool<T: Ethtool>(name: &str, value: &mut T) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut *value).cast();
    // SAFETY: SIOCETHTOOL reads the name and the pointer in `request`, and
    // reads and writes at the pointer a structure that `Ethtool` vouches for.
    unsafe { ioctl(SIOCETHTOOL, &mut request) }
}

/// A request without input; the answer is in the union.
fn device_request(name: &str, number: c_ulong) -> io::Result<libc::ifreq> {
    let mut request = request(name)?;
    // SAFETY: the numbers that are used here write to the union and nowhere
    // else.
    unsafe { ioctl(number, &mut request) }?;
    Ok(request)
}

/// # Safety
/// The pointers that the kernel follows for this number must be valid.
unsafe fn ioctl(number: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket: OwnedFd = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: `request` is valid for reading and writing; for what it points
    // to the caller vouches.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut *request) })?;
    Ok(())
}

/// A request that names a device, with zeros otherwise.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ || name.is_empty() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: all zeros are an empty name and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(bytes).map(CStr::to_bytes).unwrap_or(bytes);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<Value>(), 8);
        assert_eq!(size_of::<Channels>(), 36);
        assert_eq!(size_of::<DriverInfo>(), 196);
    }

    #[test]
    fn the_loopback_device_is_known() {
        let lo = index("lo").unwrap();
        assert_eq!(name(lo).unwrap(), "lo");
        assert_eq!(mac("lo").unwrap(), [0; 6]);
        assert!(mtu("lo").unwrap() > 0);
        assert_eq!(channels("lo").unwrap(), 1);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_names_it() {
        let absent = "tieline-no-such-device";
        for error in [
            index(absent).unwrap_err(),
            index("nul\0").unwrap_err(),
            mac(absent).unwrap_err(),
            mtu("").unwrap_err(),
            channels(absent).unwrap_err(),
            driver("nosuch0").unwrap_err(),
            disable_offloads("nosuch0").unwrap_err(),
            name(u32::MAX).unwrap_err(),
        ] {
            assert!(error.source.raw_os_error().is_some(), "{error}");
        }
        assert!(index(absent).unwrap_err().to_string().contains(absent));
    }
}
