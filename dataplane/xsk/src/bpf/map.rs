//! BPF maps.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{BpfError, Command, bpf, bpf_fd, name, pointer};

/// Kinds of maps (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys of any bytes.
    Hash = 1,
    /// Keys 0 to size - 1, all present.
    Array = 2,
    /// AF_XDP sockets by queue.
    Xsk = 17,
}

/// `BPF_F_MMAPABLE`.
const MAPPABLE: u32 = 1 << 10;

/// A BPF map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    name: &'static str,
    key_size: usize,
    value_size: usize,
    capacity: u32,
}

impl Map {
    /// A map. Arrays may be `mappable` into memory.
    pub fn new(
        kind: Kind,
        title: &'static str,
        key_size: usize,
        value_size: usize,
        capacity: u32,
        mappable: bool,
    ) -> Result<Self, BpfError> {
        #[repr(C)]
        struct Create {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            inner: u32,
            numa: u32,
            name: [u8; 16],
        }
        let mut create = Create {
            kind: kind as u32,
            key_size: key_size as u32,
            value_size: value_size as u32,
            max_entries: capacity,
            flags: if mappable { MAPPABLE } else { 0 },
            inner: 0,
            numa: 0,
            name: name(title),
        };
        let fd = bpf_fd(Command::MapCreate, &mut create)
            .map_err(|source| BpfError::Map { name: title, source })?;
        Ok(Self { fd, name: title, key_size, value_size, capacity })
    }

    /// Sets an element.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        assert!(key.len() == self.key_size && value.len() == self.value_size);
        self.element(Command::MapUpdate, key, value.as_ptr())
    }

    /// Removes an element; one that is not there is no error.
    pub fn remove(&self, key: &[u8]) -> Result<(), BpfError> {
        assert!(key.len() == self.key_size);
        match self.element(Command::MapDelete, key, std::ptr::null()) {
            Err(BpfError::Element { source, .. })
                if source.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn element(&self, command: Command, key: &[u8], value: *const u8) -> Result<(), BpfError> {
        #[repr(C)]
        struct Element {
            map: u32,
            _padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let mut element = Element {
            map: self.fd.as_raw_fd() as u32,
            _padding: 0,
            key: pointer(key.as_ptr()),
            value: pointer(value),
            flags: 0,
        };
        let (name, capacity) = (self.name, self.capacity);
        bpf(command, &mut element).map_err(|source: io::Error| BpfError::Element {
            name,
            capacity,
            source,
        })?;
        Ok(())
    }
}

impl AsRawFd for Map {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
