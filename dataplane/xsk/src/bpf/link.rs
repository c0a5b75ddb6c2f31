//! Attaching XDP programs to devices, and finding out whose is there already.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{
    Attribute, Command, IdAttribute, Program, call, call_for_descriptor, info, info_u32, program,
};
use crate::device;
use crate::device::xdp::{self, Hook};

/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// `BPF_LINK_TYPE_XDP`.
const LINK_XDP: u32 = 6;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` (linux/if_link.h).
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;
/// Bytes of `struct bpf_link_info` that matter here: type, id, program.
const LINK_INFO: usize = 32;

#[repr(C)]
struct LinkAttribute {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: as the beginning of `link_create` in union bpf_attr.
unsafe impl Attribute for LinkAttribute {}

/// `BPF_LINK_DETACH`.
#[repr(C)]
struct DetachAttribute {
    link: u32,
}

// SAFETY: as `link_detach` in union bpf_attr.
unsafe impl Attribute for DetachAttribute {}

/// Someone else's XDP program on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name; empty when it has none, or may not be asked for.
    pub name: String,
    /// `native`, `generic` or `hardware`.
    pub hook: &'static str,
    /// The link that it is attached by; without one it is attached by netlink.
    pub link: Option<u32>,
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, hook, link } = self;
        let name = if name.is_empty() { "without a name" } else { name };
        write!(formatter, "program {id} ({name}), {hook}, attached by ")?;
        match link {
            Some(link) => write!(formatter, "link {link}"),
            None => formatter.write_str("netlink"),
        }
    }
}

/// Why a program was not attached.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Another program is there. It is never replaced.
    #[error(
        "device {ifindex} has an XDP program already: {}; stop its owner, or detach it (ip link \
         set dev DEVICE xdp off, where it is attached by netlink)",
        list(.programs)
    )]
    Foreign {
        /// The device's index.
        ifindex: u32,
        /// What is there.
        programs: Vec<ForeignProgram>,
    },
    /// The driver has no XDP, or not in this configuration.
    #[error("device {ifindex} can't run XDP programs in {hook} mode: {source}")]
    Unsupported {
        /// The device's index.
        ifindex: u32,
        /// `native` or `generic`.
        hook: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The privilege is missing.
    #[error("no permission to attach an XDP program: it needs CAP_BPF and CAP_NET_ADMIN")]
    Permission,
    /// The device is gone, or in another network namespace.
    #[error("there is no device {ifindex} in this network namespace")]
    NoDevice {
        /// The device's index.
        ifindex: u32,
    },
}

fn list(programs: &[ForeignProgram]) -> String {
    let programs: Vec<_> = programs.iter().map(ForeignProgram::to_string).collect();
    if programs.is_empty() { "which is not told".to_owned() } else { programs.join(" and ") }
}

/// A program attached to a device, until this is dropped.
#[derive(Debug)]
pub struct Link {
    descriptor: OwnedFd,
    ifindex: u32,
    native: bool,
}

impl Link {
    /// Attaches a program to a device of the calling thread's network
    /// namespace, in the driver or in the network stack.
    ///
    /// # Errors
    /// When another program is there, the driver can't do it, or the privilege
    /// or the device is missing.
    pub fn attach(program: &Program, ifindex: u32, native: bool) -> Result<Self, LinkError> {
        let mut attribute = LinkAttribute {
            program: program.as_raw_fd() as u32,
            ifindex,
            attach_type: ATTACH_XDP,
            flags: if native { NATIVE } else { GENERIC },
        };
        // SAFETY: the attribute is the command's and holds no addresses.
        match unsafe { call_for_descriptor(Command::LinkCreate, &mut attribute) } {
            Ok(descriptor) => Ok(Self { descriptor, ifindex, native }),
            Err(source) => Err(explain(source, ifindex, native)),
        }
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Whether the driver runs the program.
    pub fn native(&self) -> bool {
        self.native
    }
}

impl Drop for Link {
    /// Closing the descriptor detaches the program once no process has it open
    /// any more, and a child between fork and exec has it as well: so this
    /// comes first. A kernel before 5.9 does not know it.
    fn drop(&mut self) {
        let mut attribute = DetachAttribute { link: self.descriptor.as_raw_fd() as u32 };
        // SAFETY: the attribute is the command's and holds no addresses.
        let _ = unsafe { call(Command::LinkDetach, &mut attribute) };
    }
}

fn explain(source: io::Error, ifindex: u32, native: bool) -> LinkError {
    let hook = if native { Hook::Native.label() } else { Hook::Generic.label() };
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => LinkError::Permission,
        // The kernel calls a device that is not there an invalid argument.
        Some(libc::ENODEV | libc::EINVAL) if device::name(ifindex).is_err() => {
            LinkError::NoDevice { ifindex }
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            LinkError::Foreign { ifindex, programs: foreign(ifindex) }
        }
        // ERANGE is what drivers say to an MTU that XDP has no room for.
        _ => LinkError::Unsupported { ifindex, hook, source },
    }
}

/// The programs on a device, as far as they can be told.
fn foreign(ifindex: u32) -> Vec<ForeignProgram> {
    let describe = |(id, hook): (u32, Hook)| ForeignProgram {
        id,
        name: program::name_of(id).unwrap_or_default(),
        hook: hook.label(),
        link: link_of(id),
    };
    xdp::programs(ifindex).unwrap_or_default().into_iter().map(describe).collect()
}

/// The link that a program is attached to a device by.
fn link_of(program: u32) -> Option<u32> {
    let mut attribute = IdAttribute { id: 0, next: 0, flags: 0 };
    loop {
        // SAFETY: the attribute is the command's and holds no addresses.
        unsafe { call(Command::LinkNextId, &mut attribute) }.ok()?;
        let id = attribute.next;
        attribute = IdAttribute { id, next: 0, flags: 0 };
        let mut by_id = IdAttribute { id, next: 0, flags: 0 };
        // SAFETY: as above. A link may be gone by now: on to the next one.
        let Ok(link) = (unsafe { call_for_descriptor(Command::LinkById, &mut by_id) }) else {
            continue;
        };
        let Ok(info) = info::<LINK_INFO>(link.as_raw_fd()) else { continue };
        if info_u32(&info, 0) == LINK_XDP && info_u32(&info, 8) == program {
            return Some(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_programs_are_named() {
        let mut program =
            ForeignProgram { id: 7, name: "xdp_main".into(), hook: "native", link: Some(3) };
        assert_eq!(program.to_string(), "program 7 (xdp_main), native, attached by link 3");
        program.link = None;
        program.name.clear();
        let error = LinkError::Foreign { ifindex: 2, programs: vec![program] };
        let text = error.to_string();
        assert!(text.contains("program 7 (without a name), native, attached by netlink"), "{text}");
    }
}
