//! Protobuf without a schema, read by field number: nothing is shared with the code that writes it.

use anyhow::{Context, Result, bail};

/// The fields of one message.
pub(super) struct Fields<'a>(Vec<(u32, Field<'a>)>);

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads a message.
pub(super) fn fields(mut rest: &[u8]) -> Result<Fields<'_>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut rest)?),
            1 => Field::Number(u64::from_le_bytes(cut(&mut rest, 8)?.try_into()?)),
            2 => {
                let len = varint(&mut rest)?;
                Field::Bytes(cut(&mut rest, usize::try_from(len)?)?)
            }
            5 => Field::Number(u32::from_le_bytes(cut(&mut rest, 4)?.try_into()?).into()),
            other => bail!("wire type {other}"),
        };
        fields.push((u32::try_from(key >> 3)?, field));
    }
    Ok(Fields(fields))
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = cut(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number without an end")
}

fn cut<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (piece, after) = rest.split_at_checked(len).context("cut short")?;
    *rest = after;
    Ok(piece)
}

impl<'a> Fields<'a> {
    fn all(&self, number: u32) -> impl Iterator<Item = Field<'a>> {
        let fields = self.0.iter();
        fields
            .filter(move |field| field.0 == number)
            .map(|field| field.1)
    }

    /// Whether the field is there.
    pub(super) fn has(&self, number: u32) -> bool {
        self.all(number).next().is_some()
    }

    /// Every value of a field of messages.
    pub(super) fn messages(&self, number: u32) -> impl Iterator<Item = &'a [u8]> {
        self.all(number).filter_map(|field| match field {
            Field::Bytes(bytes) => Some(bytes),
            Field::Number(_) => None,
        })
    }

    /// Bytes, a message or text; empty when it is not there.
    pub(super) fn bytes(&self, number: u32) -> &'a [u8] {
        self.messages(number).next().unwrap_or_default()
    }

    /// Text; empty when it is not there.
    pub(super) fn text(&self, number: u32) -> Result<String> {
        Ok(str::from_utf8(self.bytes(number))?.to_owned())
    }

    /// A number; 0 when it is not there.
    pub(super) fn number(&self, number: u32) -> u64 {
        let numbers = self.all(number).filter_map(|field| match field {
            Field::Number(number) => Some(number),
            Field::Bytes(_) => None,
        });
        numbers.last().unwrap_or_default()
    }
}
