//! XDP programs: loaded, tested, attached.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::asm::Instruction;
use super::{BpfError, Command, bpf, bpf_fd, name, pointer};
use crate::device;

/// `BPF_PROG_TYPE_XDP`
const XDP: u32 = 6;
/// `BPF_XDP`
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE`
const GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`
const NATIVE: u32 = 1 << 2;

/// What becomes of a frame (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The program failed: dropped.
    Aborted,
    /// Dropped.
    Drop,
    /// Goes on to the kernel.
    Pass,
    /// Goes back out.
    Transmit,
    /// Goes to a socket or another device.
    Redirect,
    /// A number that this kernel knows and we don't.
    Other(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// Why a program is not on a device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else's program is there; it stays.
    #[error(
        "device {device} has an XDP program already: {program}; remove it (ip link set dev \
         {device} xdp off, or end the process that holds its link), or let Tieline use another \
         device or underlay.mode = \"packet\""
    )]
    Foreign {
        /// The device.
        device: String,
        /// Number, name and way of attachment of that program.
        program: String,
    },
    /// The kernel refuses.
    #[error("an XDP program can't be attached to device {device} ({way}): {source}")]
    Refused {
        /// The device.
        device: String,
        /// Native or generic.
        way: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl AttachError {
    /// Whether the kernel refused for want of privileges.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Foreign { .. } => false,
            Self::Refused { source, .. } => source.raw_os_error() == Some(libc::EPERM),
        }
    }
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads a program; the verifier's words are in the error.
    pub fn load(title: &'static str, code: &[Instruction]) -> Result<Self, BpfError> {
        // The log costs time and memory, so it is asked for only on failure.
        Self::try_load(title, code, &mut []).or_else(|_| {
            let mut log = vec![0u8; 1 << 20];
            Self::try_load(title, code, &mut log).map_err(|source| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
                let log = String::from_utf8_lossy(&log[..end]).into_owned();
                BpfError::Load { name: title, source, log }
            })
        })
    }

    fn try_load(title: &str, code: &[Instruction], log: &mut [u8]) -> io::Result<Self> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            code: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
        }
        let mut load = Load {
            kind: XDP,
            count: code.len() as u32,
            code: pointer(code.as_ptr()),
            license: pointer(c"Apache-2.0".as_ptr()),
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log: if log.is_empty() { 0 } else { pointer(log.as_mut_ptr()) },
            kernel_version: 0,
            flags: 0,
            name: name(title),
        };
        Ok(Self(bpf_fd(Command::ProgramLoad, &mut load)?))
    }

    /// Attaches the program to a device by a link of its own. Another's program
    /// is never replaced.
    pub fn attach(&self, index: u32, native: bool) -> Result<Link, AttachError> {
        #[repr(C)]
        struct Create {
            program: u32,
            device: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut create = Create {
            program: self.0.as_raw_fd() as u32,
            device: index,
            attach_type: ATTACH_XDP,
            flags: if native { NATIVE } else { GENERIC },
        };
        bpf_fd(Command::LinkCreate, &mut create).map(Link).map_err(|source| {
            let device = device::name(index).unwrap_or_else(|_| format!("of index {index}"));
            let way = if native { "native" } else { "generic" };
            match device::xdp_program(index) {
                Ok(Some(found)) => {
                    let title = program_name(found.id).unwrap_or_else(|_| "unnamed".into());
                    let program = format!("number {}, {title}, {}", found.id, found.way);
                    AttachError::Foreign { device, program }
                }
                _ => AttachError::Refused { device, way, source },
            }
        })
    }

    /// Runs the program over a frame of at least 14 bytes, as if it had come
    /// from queue 0 of the loopback device, and returns what becomes of it.
    pub fn test_run(&self, frame: &[u8]) -> Result<Action, BpfError> {
        #[repr(C)]
        struct Run {
            program: u32,
            result: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        let mut run = Run {
            program: self.0.as_raw_fd() as u32,
            result: 0,
            size_in: frame.len() as u32,
            size_out: 0,
            data_in: pointer(frame.as_ptr()),
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        bpf(Command::ProgramTestRun, &mut run).map_err(BpfError::Run)?;
        Ok(run.result.into())
    }
}

/// A program on a device; it is detached when this is dropped.
#[derive(Debug)]
pub struct Link(#[allow(dead_code, reason = "held for its end")] OwnedFd);

/// The name of a loaded program.
fn program_name(id: u32) -> io::Result<String> {
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
    }
    let fd = bpf_fd(Command::ProgramById, &mut ById { id, next: 0, flags: 0 })?;
    // The beginning of `struct bpf_prog_info`, up to the name.
    #[repr(C)]
    struct Info {
        _before: [u64; 8],
        name: [u8; 16],
    }
    #[repr(C)]
    struct Ask {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = Info { _before: [0; 8], name: [0; 16] };
    let mut ask = Ask {
        fd: fd.as_raw_fd() as u32,
        len: size_of::<Info>() as u32,
        info: pointer(&raw mut info),
    };
    bpf(Command::ObjectInfo, &mut ask)?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}
