//! Encoded protobuf messages, taken apart into fields and put together again without decoding what is in between.

use super::proto::StringStringEntryProto;
use prost::{DecodeError, Message, decode_length_delimiter, encode_length_delimiter};

/// One field of an encoded message.
#[derive(Clone, Copy)]
pub(super) struct Field<'m> {
    pub(super) number: usize,
    /// With its key.
    pub(super) whole: &'m [u8],
    /// The bytes of a string or message; of a number, how it is written.
    pub(super) payload: &'m [u8],
}

impl<'m> Field<'m> {
    /// The string in one of this message's fields; empty when it is not there.
    pub(super) fn string(&self, number: usize) -> &'m str {
        let fields = fields(self.payload).unwrap_or_default();
        let found = fields.iter().find(|field| field.number == number);
        found.and_then(|field| str::from_utf8(field.payload).ok()).unwrap_or_default()
    }

    /// Of a value or an attribute.
    pub(super) fn name(&self) -> &'m str {
        self.string(1)
    }
}

/// The fields of an encoded message, in their order.
pub(super) fn fields(mut message: &[u8]) -> Result<Vec<Field<'_>>, DecodeError> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let start = message;
        let key = varint(&mut message)?;
        let payload = match key & 7 {
            0 => {
                let number = message;
                varint(&mut message)?;
                &number[..number.len() - message.len()]
            }
            1 => take(&mut message, 8)?,
            2 => {
                let len = varint(&mut message)?;
                take(&mut message, len)?
            }
            5 => take(&mut message, 4)?,
            _ => return Err(cut_short()),
        };
        fields.push(Field { number: key >> 3, whole: &start[..start.len() - message.len()], payload });
    }
    Ok(fields)
}

/// The next 64-bit number of variable length.
pub(super) fn varint(message: &mut &[u8]) -> Result<usize, DecodeError> {
    decode_length_delimiter(message)
}

fn take<'m>(message: &mut &'m [u8], len: usize) -> Result<&'m [u8], DecodeError> {
    let (taken, rest) = message.split_at_checked(len).ok_or_else(cut_short)?;
    *message = rest;
    Ok(taken)
}

/// What prost says of a message that ends too early.
fn cut_short() -> DecodeError {
    let one_byte_string: &[u8] = &[0x0a, 1];
    StringStringEntryProto::decode(one_byte_string).expect_err("its byte is missing")
}

pub(super) fn encode(number: usize, message: &impl Message) -> Vec<u8> {
    let mut field = Vec::new();
    push_bytes(&mut field, number, &message.encode_to_vec());
    field
}

pub(super) fn push_bytes(message: &mut Vec<u8>, number: usize, payload: &[u8]) {
    push_key(message, number, payload.len());
    message.extend_from_slice(payload);
}

/// The start of a field of bytes.
pub(super) fn push_key(message: &mut Vec<u8>, number: usize, len: usize) {
    for number in [number << 3 | 2, len] {
        encode_length_delimiter(number, message).expect("a vector grows");
    }
}
