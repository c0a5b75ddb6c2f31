//! A small assembler for BPF (RFC 9669).

use super::map::Map;
use std::os::fd::AsRawFd;

/// A register. `R0` is a call's result and the program's; `R1` to `R5` are
/// arguments and lost by a call; `R6` to `R9` are kept; `R10` is the end of the
/// stack, which grows downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "numbers")]
pub enum Reg {
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

/// Bytes that a load or store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1
    Byte = 0x10,
    /// 2
    Half = 0x08,
    /// 4
    Word = 0x00,
    /// 8
    Double = 0x18,
}

/// A register or a number, sign-extended to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// A number.
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Imm(number)
    }
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the instruction set's own names")]
pub enum Alu {
    Add = 0x00,
    Sub = 0x10,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Mov = 0xb0,
}

/// Conditions of jumps, on 64 bits, unsigned unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum If {
    /// Equal.
    Eq = 0x10,
    /// Greater.
    Gt = 0x20,
    /// Any bit in common.
    Set = 0x40,
    /// Different.
    Ne = 0x50,
    /// Greater, signed.
    Sgt = 0x60,
    /// Less.
    Lt = 0xa0,
}

/// Functions of the kernel (`enum bpf_func_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub enum Helper {
    MapLookup = 1,
    KtimeGetNs = 5,
    RedirectMap = 51,
}

/// A place to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program that is being put together.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    /// Jumps and the labels that they go to.
    jumps: Vec<(usize, usize)>,
}

impl Assembler {
    /// A new place to jump to, not placed yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands here.
    pub fn place(&mut self, label: Label) -> &mut Self {
        self.labels[label.0] = Some(self.code.len());
        self
    }

    fn push(&mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) -> &mut Self {
        let registers = (from as u8) << 4 | to as u8;
        self.code.push(Instruction { code, registers, offset, immediate });
        self
    }

    fn operate(&mut self, code: u8, to: Reg, operand: Operand, offset: i16) -> &mut Self {
        match operand {
            Operand::Reg(from) => self.push(code | 0x08, to, from, offset, 0),
            Operand::Imm(number) => self.push(code, to, Reg::R0, offset, number),
        }
    }

    /// `to = to OP operand`, or `to = operand` for [`Alu::Mov`].
    pub fn alu(&mut self, operation: Alu, to: Reg, operand: impl Into<Operand>) -> &mut Self {
        self.operate(0x07 | operation as u8, to, operand.into(), 0)
    }

    /// `to = *(from + offset)`
    pub fn load(&mut self, size: Size, to: Reg, from: Reg, offset: i16) -> &mut Self {
        self.push(0x61 | size as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = from`
    pub fn store(&mut self, size: Size, to: Reg, offset: i16, from: Reg) -> &mut Self {
        self.push(0x63 | size as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = number`
    pub fn store_number(&mut self, size: Size, to: Reg, offset: i16, number: i32) -> &mut Self {
        self.push(0x62 | size as u8, to, Reg::R0, offset, number)
    }

    /// Jumps if `a CONDITION b`.
    pub fn jump(&mut self, condition: If, a: Reg, b: impl Into<Operand>, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to.0));
        self.operate(0x05 | condition as u8, a, b.into(), 0)
    }

    /// Jumps.
    pub fn goto(&mut self, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to.0));
        self.push(0x05, Reg::R0, Reg::R0, 0, 0)
    }

    /// Calls the kernel.
    pub fn call(&mut self, helper: Helper) -> &mut Self {
        self.push(0x85, Reg::R0, Reg::R0, 0, helper as i32)
    }

    /// `to = map`
    pub fn load_map(&mut self, to: Reg, map: &Map) -> &mut Self {
        // BPF_PSEUDO_MAP_FD; takes the place of two instructions.
        self.push(0x18, to, Reg::R1, 0, map.as_raw_fd());
        self.push(0x00, Reg::R0, Reg::R0, 0, 0)
    }

    /// Ends the program with `R0` as its result.
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x95, Reg::R0, Reg::R0, 0, 0)
    }

    /// The program, every jump set.
    ///
    /// # Panics
    /// If a jump goes to a label that was not placed, or too far: an error of
    /// whoever wrote the program.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels[label].expect("every label is placed");
            let distance = target as isize - at as isize - 1;
            self.code[at].offset = i16::try_from(distance).expect("programs are short");
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        let mut asm = Assembler::default();
        let end = asm.label();
        asm.alu(Alu::Mov, Reg::R0, 2)
            .load(Size::Half, Reg::R2, Reg::R7, 12)
            .jump(If::Ne, Reg::R2, 8, end)
            .alu(Alu::Add, Reg::R2, Reg::R3)
            .store(Size::Double, Reg::R10, -8, Reg::R2)
            .call(Helper::KtimeGetNs)
            .place(end)
            .exit();
        let bytes: Vec<(u8, u8, i16, i32)> =
            asm.finish().iter().map(|i| (i.code, i.registers, i.offset, i.immediate)).collect();
        assert_eq!(
            bytes,
            [
                (0xb7, 0x00, 0, 2),
                (0x69, 0x72, 12, 0),
                (0x55, 0x02, 3, 8),
                (0x0f, 0x32, 0, 0),
                (0x7b, 0x2a, -8, 0),
                (0x85, 0x00, 0, 5),
                (0x95, 0x00, 0, 0),
            ]
        );
    }
}
