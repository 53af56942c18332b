//! Just enough MessagePack to write a batch of events.

/// Appends values in the shortest form.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn nil(&mut self) {
        self.0.push(0xc0);
    }

    pub fn uint(&mut self, value: u64) {
        match value {
            0..=0x7f => self.0.push(value as u8),
            0x80..=0xff => self.0.extend([0xcc, value as u8]),
            0x100..=0xffff => self.tagged(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &(value as u32).to_be_bytes()),
            _ => self.tagged(0xcf, &value.to_be_bytes()),
        }
    }

    pub fn float(&mut self, value: f64) {
        self.tagged(0xcb, &value.to_be_bytes());
    }

    pub fn text(&mut self, value: &str) {
        let len = value.len();
        match len {
            0..=31 => self.0.push(0xa0 | len as u8),
            32..=0xff => self.0.extend([0xd9, len as u8]),
            _ => self.tagged(0xda, &(len.min(0xffff) as u16).to_be_bytes()),
        }
        self.0.extend(&value.as_bytes()[..len.min(0xffff)]);
    }

    pub fn array(&mut self, len: usize) {
        match len {
            0..=15 => self.0.push(0x90 | len as u8),
            16..=0xffff => self.tagged(0xdc, &(len as u16).to_be_bytes()),
            _ => self.tagged(0xdd, &(len as u32).to_be_bytes()),
        }
    }

    pub fn map(&mut self, len: usize) {
        match len {
            0..=15 => self.0.push(0x80 | len as u8),
            _ => self.tagged(0xde, &(len as u16).to_be_bytes()),
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.0
    }

    /// The examples of the specification.
    #[test]
    fn values_take_their_shortest_form() {
        assert_eq!(bytes(|w| w.uint(5)), [5]);
        assert_eq!(bytes(|w| w.uint(200)), [0xcc, 200]);
        assert_eq!(bytes(|w| w.uint(1 << 15)), [0xcd, 0x80, 0]);
        assert_eq!(bytes(|w| w.uint(1 << 31)), [0xce, 0x80, 0, 0, 0]);
        assert_eq!(bytes(|w| w.uint(1 << 63)), [0xcf, 0x80, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(|w| w.text("GPU")), [0xa3, b'G', b'P', b'U']);
        assert_eq!(bytes(|w| w.array(16)), [0xdc, 0, 16]);
        assert_eq!(bytes(|w| w.map(2)), [0x82]);
        assert_eq!(bytes(|w| w.float(1.0))[..2], [0xcb, 0x3f]);
    }
}
