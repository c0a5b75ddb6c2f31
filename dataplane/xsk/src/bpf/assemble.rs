//! An assembler for BPF programs, with labels
//! (Documentation/bpf/standardization/instruction-set.rst).

use std::os::fd::AsRawFd;

use super::Map;

/// One of the machine's registers. R0 holds results, R1 to R5 arguments, R6 to
/// R9 survive calls, and R10 is the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they have numbers, not meanings")]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// How many bytes a load or store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Half,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Double,
}

impl Size {
    const fn code(self) -> u8 {
        match self {
            Self::Byte => 0x10,
            Self::Half => 0x08,
            Self::Word => 0x00,
            Self::Double => 0x18,
        }
    }
}

/// Arithmetic, all in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// Comparisons of a register with an operand, in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Equal.
    Equal = 0x10,
    /// Greater, without sign.
    Greater = 0x20,
    /// Greater or equal, without sign.
    GreaterOrEqual = 0x30,
    /// Any bit of the operand set.
    AnySet = 0x40,
    /// Not equal.
    NotEqual = 0x50,
    /// Greater, with sign.
    SignedGreater = 0x60,
    /// Less, without sign.
    Less = 0xa0,
}

/// The second operand: a register, or a number that is extended with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A register's value.
    Register(Register),
    /// A number.
    Immediate(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Immediate(number)
    }
}

/// Functions of the kernel (`BPF_FUNC_*` in linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// Map in R1, address of the key in R2; address of the value or 0 in R0.
    MapLookup = 1,
    /// The monotonic clock in nanoseconds in R0.
    MonotonicTime = 5,
    /// A random number of 32 bits in R0.
    Random = 7,
    /// Device index in R1, flags in R2; action in R0.
    Redirect = 23,
    /// Map in R1, key in R2, action when it has no entry in R3; action in R0.
    RedirectMap = 51,
}

/// A place in a program to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// One instruction as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones; the other
    /// way around on big-endian machines.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program that can't be finished: an error in the code that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A jump leads to a label that was never placed.
    #[error("the jump at instruction {at} leads nowhere")]
    Unplaced {
        /// The jump's number.
        at: usize,
    },
    /// A jump is too long for its field of 16 bits.
    #[error("the jump at instruction {at} is too long")]
    TooLong {
        /// The jump's number.
        at: usize,
    },
}

const CLASS_LOAD_IMMEDIATE: u8 = 0x00;
const CLASS_LOAD: u8 = 0x01;
const CLASS_STORE_IMMEDIATE: u8 = 0x02;
const CLASS_STORE: u8 = 0x03;
const CLASS_JUMP: u8 = 0x05;
const CLASS_ARITHMETIC: u8 = 0x07;
const MODE_MEMORY: u8 = 0x60;
const SOURCE_REGISTER: u8 = 0x08;
const JUMP_ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// Source field of a 64-bit load: the number is a map's descriptor.
const PSEUDO_MAP: u8 = 1;
/// The same, for the address of the map's first value.
const PSEUDO_MAP_VALUE: u8 = 2;

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label was placed.
    labels: Vec<Option<usize>>,
    /// Jumps whose offset is still to be filled in.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A label that is yet to be placed.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label before the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn push(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        let registers =
            if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
        self.code.push(Instruction { code, registers, offset, immediate });
    }

    /// `dst = dst operation operand`.
    pub fn compute(&mut self, operation: Operation, dst: Register, operand: impl Into<Operand>) {
        let code = CLASS_ARITHMETIC | operation as u8;
        match operand.into() {
            Operand::Register(src) => {
                self.push(code | SOURCE_REGISTER, dst as u8, src as u8, 0, 0);
            }
            Operand::Immediate(number) => self.push(code, dst as u8, 0, 0, number),
        }
    }

    /// `dst = operand`.
    pub fn set(&mut self, dst: Register, operand: impl Into<Operand>) {
        self.compute(Operation::Move, dst, operand);
    }

    /// `dst = *(size *)(base + offset)`, extended with zeros.
    pub fn load(&mut self, size: Size, dst: Register, base: Register, offset: i16) {
        self.push(CLASS_LOAD | MODE_MEMORY | size.code(), dst as u8, base as u8, offset, 0);
    }

    /// `*(size *)(base + offset) = operand`.
    pub fn store(&mut self, size: Size, base: Register, offset: i16, operand: impl Into<Operand>) {
        let code = MODE_MEMORY | size.code();
        match operand.into() {
            Operand::Register(src) => {
                self.push(CLASS_STORE | code, base as u8, src as u8, offset, 0);
            }
            Operand::Immediate(number) => {
                self.push(CLASS_STORE_IMMEDIATE | code, base as u8, 0, offset, number);
            }
        }
    }

    /// `dst = map`, for helpers that take one.
    pub fn load_map(&mut self, dst: Register, map: &Map) {
        self.load_wide(dst, PSEUDO_MAP, map, 0);
    }

    /// `dst = address of the map's first value + offset`, for arrays.
    pub fn load_map_value(&mut self, dst: Register, map: &Map, offset: i32) {
        self.load_wide(dst, PSEUDO_MAP_VALUE, map, offset);
    }

    fn load_wide(&mut self, dst: Register, kind: u8, map: &Map, high: i32) {
        let code = CLASS_LOAD_IMMEDIATE | Size::Double.code();
        self.push(code, dst as u8, kind, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, high);
    }

    /// Goes on at a label.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JUMP | JUMP_ALWAYS, 0, 0, 0, 0);
    }

    /// Goes on at a label if `left condition operand`.
    pub fn jump_if(
        &mut self,
        condition: Condition,
        left: Register,
        operand: impl Into<Operand>,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        let code = CLASS_JUMP | condition as u8;
        match operand.into() {
            Operand::Register(right) => {
                self.push(code | SOURCE_REGISTER, left as u8, right as u8, 0, 0);
            }
            Operand::Immediate(number) => self.push(code, left as u8, 0, 0, number),
        }
    }

    /// Calls a function of the kernel; R1 to R5 are lost.
    pub fn call(&mut self, helper: Helper) {
        self.push(CLASS_JUMP | CALL, 0, 0, 0, helper as i32);
    }

    /// Ends the program with the result in R0.
    pub fn exit(&mut self) {
        self.push(CLASS_JUMP | EXIT, 0, 0, 0, 0);
    }

    /// The finished program.
    ///
    /// # Errors
    /// When a jump leads nowhere or too far.
    pub fn finish(mut self) -> Result<Vec<Instruction>, AssembleError> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].ok_or(AssembleError::Unplaced { at })?;
            // A jump counts from the instruction that follows it.
            let distance = to as i64 - (at as i64 + 1);
            self.code[at].offset =
                i16::try_from(distance).map_err(|_| AssembleError::TooLong { at })?;
        }
        Ok(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Register::*;

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut program = Assembler::new();
        let (again, end) = (program.label(), program.label());
        program.place(again);
        program.set(R0, 1);
        program.jump_if(Condition::Equal, R0, R1, end);
        program.jump(again);
        program.place(end);
        program.exit();
        let code = program.finish().unwrap();
        assert_eq!([code[1].offset, code[2].offset], [1, -3]);
    }

    #[test]
    fn jumps_to_nowhere_are_errors() {
        let mut program = Assembler::new();
        let label = program.label();
        program.exit();
        program.jump(label);
        assert_eq!(program.finish(), Err(AssembleError::Unplaced { at: 1 }));
    }

    #[test]
    fn jumps_that_are_too_long_are_errors() {
        let mut program = Assembler::new();
        let label = program.label();
        program.jump(label);
        for _ in 0..40_000 {
            program.set(R0, 0);
        }
        program.place(label);
        program.exit();
        assert_eq!(program.finish(), Err(AssembleError::TooLong { at: 0 }));
    }

    /// Encodings from the instruction set's document.
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let mut program = Assembler::new();
        program.set(R6, R1);
        program.load(Size::Word, R2, R6, 4);
        program.store(Size::Double, R10, -16, R3);
        program.store(Size::Half, R10, -4, -1);
        program.compute(Operation::And, R5, 15);
        program.call(Helper::RedirectMap);
        program.exit();
        let bytes: Vec<_> = program
            .finish()
            .unwrap()
            .iter()
            .map(|i| (i.code, i.registers, i.offset, i.immediate))
            .collect();
        let expected = [
            (0xbf, 0x16, 0, 0),
            (0x61, 0x62, 4, 0),
            (0x7b, 0x3a, -16, 0),
            (0x6a, 0x0a, -4, -1),
            (0x57, 0x05, 0, 15),
            (0x85, 0x00, 0, 51),
            (0x95, 0x00, 0, 0),
        ];
        assert_eq!(bytes, expected);
    }
}
