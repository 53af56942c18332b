//! ZMTP 3.0 as both sides of a connection speak it: greeting, handshake without security, frames.
//!
//! A crate and not the library for it, which is C++ that a build would have to bring. Apart, because replicas publish
//! KV events with it and routers follow them, and neither builds the other.
//!
//! ```text
//! greeting  ff 00*8 7f | 3 0 | "NULL" padded to 20 | 0 | 0*31        64 bytes, both ways
//! frame     flags (1 more, 2 long, 4 command) | length (1 or 8 bytes) | body
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// The handshake's own frames.
const READY_BYTES_MAX: usize = 4 << 10;
/// What is made room for on the word of a length alone.
const RESERVE_BYTES_MAX: usize = 64 << 10;

/// One frame of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub is_command: bool,
    pub has_more: bool,
    pub body: Vec<u8>,
}

/// Greets and shakes hands as `kind`; the peer's socket type must be one of `peers`.
pub async fn shake<S>(stream: &mut S, kind: &str, peers: &[&str]) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&greeting()).await?;
    let mut theirs = [0; GREETING_BYTES];
    stream.read_exact(&mut theirs).await?;
    if theirs[0] != 0xff || theirs[9] & 1 != 1 || theirs[10] < 3 {
        return Err(refuse("not a ZMTP 3 peer"));
    }
    if theirs[12..32] != greeting()[12..32] {
        return Err(refuse("only the NULL mechanism is spoken here"));
    }
    let mut ready = Vec::new();
    ready.push(5);
    ready.extend(b"READY");
    property(&mut ready, "Socket-Type", kind.as_bytes());
    property(&mut ready, "Identity", b"");
    write_frame(stream, COMMAND, &ready).await?;
    stream.flush().await?;
    let answer = read_frame(stream, READY_BYTES_MAX).await?;
    let is_ready = answer.is_command && answer.body.get(..6) == Some(b"\x05READY");
    let peer = is_ready.then(|| find_property(&answer.body[6..], b"Socket-Type")).flatten();
    match peer {
        Some(peer) if peers.iter().any(|known| known.as_bytes() == peer) => Ok(()),
        _ => Err(refuse("a peer of another socket type")),
    }
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

fn refuse(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend((value.len() as u32).to_be_bytes());
    out.extend(value);
}

fn find_property<'a>(mut bytes: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    while let Some((&len, rest)) = bytes.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*size) as usize)?;
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        bytes = rest;
    }
    None
}

/// The next frame, of at most so many bytes. Memory grows with what comes, not with what is claimed.
pub async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S, bytes_max: usize) -> io::Result<Frame> {
    let flags = stream.read_u8().await?;
    let len = if flags & LONG != 0 { stream.read_u64().await? } else { u64::from(stream.read_u8().await?) };
    if len > bytes_max as u64 {
        return Err(refuse("a frame longer than any that is expected"));
    }
    let mut body = Vec::with_capacity((len as usize).min(RESERVE_BYTES_MAX));
    if stream.take(len).read_to_end(&mut body).await? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { is_command: flags & COMMAND != 0, has_more: flags & MORE != 0, body })
}

/// The next message: its frames, of at most so many bytes in all. Commands in between are passed over.
pub async fn read_message<S: AsyncRead + Unpin>(
    stream: &mut S,
    frames_max: usize,
    bytes_max: usize,
) -> io::Result<Vec<Vec<u8>>> {
    let (mut frames, mut left) = (Vec::new(), bytes_max);
    loop {
        let frame = read_frame(stream, left).await?;
        if frame.is_command {
            continue;
        }
        if frames.len() >= frames_max {
            return Err(refuse("a message of more frames than any that is expected"));
        }
        left -= frame.body.len();
        frames.push(frame.body);
        if !frame.has_more {
            return Ok(frames);
        }
    }
}

/// All frames of one message.
pub async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, frames: &[&[u8]]) -> io::Result<()> {
    for (i, frame) in frames.iter().enumerate() {
        let flags = if i + 1 < frames.len() { MORE } else { 0 };
        write_frame(stream, flags, frame).await?;
    }
    stream.flush().await
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, flags: u8, body: &[u8]) -> io::Result<()> {
    match u8::try_from(body.len()) {
        Ok(len) => stream.write_all(&[flags, len]).await?,
        Err(_) => {
            stream.write_all(&[flags | LONG]).await?;
            stream.write_all(&(body.len() as u64).to_be_bytes()).await?;
        }
    }
    stream.write_all(body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_sides_shake_hands_and_frames_arrive_as_they_were_sent() {
        let (mut a, mut b) = tokio::io::duplex(1 << 10);
        let server = async {
            shake(&mut a, "PUB", &["SUB"]).await?;
            write_message(&mut a, &[b"", b"12345678", &[7; 3000]]).await
        };
        let client = async {
            shake(&mut b, "SUB", &["PUB"]).await?;
            read_message(&mut b, 3, 1 << 20).await
        };
        let (sent, read) = tokio::join!(server, client);
        sent.unwrap();
        assert_eq!(read.unwrap(), [Vec::new(), b"12345678".to_vec(), vec![7; 3000]]);
    }

    #[tokio::test]
    async fn another_kind_of_socket_is_refused() {
        let (mut a, mut b) = tokio::io::duplex(1 << 10);
        let (a, b) = tokio::join!(shake(&mut a, "PUB", &["SUB"]), shake(&mut b, "REQ", &["ROUTER"]));
        assert_eq!(a.unwrap_err().to_string(), "a peer of another socket type");
        assert!(b.is_err());
    }

    #[tokio::test]
    async fn a_claimed_length_beyond_the_bound_is_refused_and_one_within_it_reserves_little() {
        let claims = |len: u64| [&[LONG][..], &len.to_be_bytes(), b"abc"].concat();
        let long = read_frame(&mut &claims(u64::MAX)[..], 1 << 20).await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        let cut = read_frame(&mut &claims(1 << 20)[..], 1 << 20).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        let many = [MORE, 1, b'x'].repeat(9);
        let refused = read_message(&mut &many[..], 4, 1 << 20).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
