//! Loading XDP programs and running them for a test.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{
    Attribute, Command, IdAttribute, Instruction, address, address_mut, call, call_for_descriptor,
    info, info_u32, object_name,
};

/// `BPF_PROG_TYPE_XDP`.
const PROGRAM_TYPE_XDP: u32 = 6;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;
/// None of the helpers in use asks for a license; this is the project's.
const LICENSE: &CStr = c"Apache-2.0";
const LOG_SIZE: usize = 256 * 1024;

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The privilege is missing.
    #[error(
        "no permission to load XDP program {name}: it needs CAP_BPF and CAP_NET_ADMIN, or \
         CAP_SYS_ADMIN before Linux 5.8; in Kubernetes, run the container privileged or add them"
    )]
    Permission {
        /// The program's name.
        name: String,
    },
    /// The kernel refuses the program.
    #[error("XDP program {name} was refused: {source}; the verifier says:\n{log}")]
    Refused {
        /// The program's name.
        name: String,
        /// The kernel's reason.
        source: io::Error,
        /// What the verifier wrote.
        log: String,
    },
}

#[repr(C)]
struct LoadAttribute {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

// SAFETY: as the BPF_PROG_LOAD part of union bpf_attr.
unsafe impl Attribute for LoadAttribute {}

/// `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttribute {
    program: u32,
    result: u32,
    data_size: u32,
    data_out_size: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_out_size: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

// SAFETY: as the BPF_PROG_TEST_RUN part of union bpf_attr, the padding named.
unsafe impl Attribute for RunAttribute {}

/// `struct xdp_md` for a test run.
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    queue: u32,
    egress_ifindex: u32,
}

/// What an XDP program decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The program failed; the frame is dropped.
    Aborted,
    /// Drop.
    Drop,
    /// On to the network stack.
    Pass,
    /// Back out of the device that it came from.
    Transmit,
    /// To a socket or another device.
    Redirect,
    /// Nothing that the kernel knows.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// How a test run is to look to the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestRun {
    /// The device and queue that the frame seems to come from; the loopback
    /// device's queue 0 when there is none.
    pub ingress: Option<(u32, u32)>,
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
}

impl Program {
    /// Loads an XDP program.
    ///
    /// # Errors
    /// When the privilege is missing, or the kernel refuses the program.
    pub fn load(name: &str, code: &[Instruction]) -> Result<Self, LoadError> {
        let name = || name.to_owned();
        match load(&name(), code, None) {
            Ok(descriptor) => Ok(Self { descriptor }),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Err(LoadError::Permission { name: name() })
            }
            Err(source) => {
                // Once more, for the verifier's words.
                let mut log = vec![0; LOG_SIZE];
                match load(&name(), code, Some(&mut log)) {
                    Ok(descriptor) => Ok(Self { descriptor }),
                    Err(_) => {
                        let text = CStr::from_bytes_until_nul(&log).unwrap_or_default();
                        let log = text.to_string_lossy().trim_end().to_owned();
                        Err(LoadError::Refused { name: name(), source, log })
                    }
                }
            }
        }
    }

    /// Runs the program over a frame, which stays as it is.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for a frame shorter than an Ethernet header.
    pub fn test_run(&self, frame: &[u8], run: TestRun) -> io::Result<Action> {
        let context = run.ingress.map(|(ingress_ifindex, queue)| Context {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex,
            queue,
            egress_ifindex: 0,
        });
        let mut attribute = RunAttribute {
            program: self.as_raw_fd() as u32,
            data_size: frame.len() as u32,
            data: address(frame),
            repeat: 1,
            context_size: context.as_ref().map_or(0, |context| size_of_val(context) as u32),
            context: context.as_ref().map_or(0, address),
            ..RunAttribute::default()
        };
        // SAFETY: the attribute is the command's; `data` and `context` are
        // valid for reading their sizes, and nothing is to be written.
        unsafe { call(Command::ProgramTestRun, &mut attribute) }?;
        Ok(Action::from(attribute.result))
    }

    /// Runs the program over `count` copies of a frame, which are real: they go
    /// where the program says (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18).
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn run_live(&self, frame: &[u8], count: u32, batch_size: u32) -> io::Result<()> {
        let mut attribute = RunAttribute {
            program: self.as_raw_fd() as u32,
            data_size: frame.len() as u32,
            data: address(frame),
            repeat: count,
            flags: LIVE_FRAMES,
            batch_size,
            ..RunAttribute::default()
        };
        // SAFETY: the attribute is the command's; `data` is valid for reading
        // its size, and nothing is to be written.
        unsafe { call(Command::ProgramTestRun, &mut attribute) }?;
        Ok(())
    }

    /// The kernel's number for the program.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<u32> {
        Ok(info_u32(&info::<PROGRAM_INFO>(self.as_raw_fd())?, 4))
    }
}

impl AsRawFd for Program {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

fn load(name: &str, code: &[Instruction], log: Option<&mut [u8]>) -> io::Result<OwnedFd> {
    let (log_level, log_size, log) = match log {
        Some(log) => (1, log.len() as u32, address_mut(log)),
        None => (0, 0, 0),
    };
    let mut attribute = LoadAttribute {
        kind: PROGRAM_TYPE_XDP,
        count: code.len() as u32,
        instructions: address(code),
        license: LICENSE.as_ptr().addr() as u64,
        log_level,
        log_size,
        log,
        kernel_version: 0,
        flags: 0,
        name: object_name(name),
    };
    // SAFETY: the attribute is the command's; the instructions are valid for
    // reading `count` of them, the license up to its zero, and the log for
    // writing `log_size` bytes.
    unsafe { call_for_descriptor(Command::ProgramLoad, &mut attribute) }
}

/// Bytes of `struct bpf_prog_info` up to the end of the name.
const PROGRAM_INFO: usize = 80;

/// The name of any loaded program, empty when it has none.
pub(super) fn name_of(id: u32) -> io::Result<String> {
    let mut attribute = IdAttribute { id, next: 0, flags: 0 };
    // SAFETY: the attribute is the command's and holds no addresses.
    let program = unsafe { call_for_descriptor(Command::ProgramById, &mut attribute) }?;
    let info = info::<PROGRAM_INFO>(program.as_raw_fd())?;
    let name = CStr::from_bytes_until_nul(&info[64..]).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
