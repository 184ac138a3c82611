//! Frames as a broker may send them: after mending, the client library reads each.

use forebay_producer::link::mend::{DEEPEST, mend, shorten};
use lapin::protocol::basic::parse_properties;
use lapin::protocol::parse_class;

use crate::source::Source;

const FRAME_MAX: usize = 131_072;

/// Bytes of any kind.
#[test]
fn any_frame() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/any_frame", check_any_frame);
}

pub(crate) fn check_any_frame(input: &[u8]) {
    let mut frame = input.to_vec();
    let mended = mend(&mut frame);
    assert_eq!(frame.len(), input.len());
    assert_eq!(mended.any(), frame != input);
    let before = frame.clone();
    assert!(!mend(&mut frame).any(), "mended twice: {}", input.escape_ascii());
    assert_eq!(frame, before);
    for most in [64, 256, 4096] {
        if let Some(short) = shorten(&frame, most) {
            assert!(short.frame.len() < frame.len() + 600);
        }
    }
}

/// Frames by the rules of AMQP, with texts that are none and arrays of any depth.
#[test]
fn message() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/message", check_message);
}

pub(crate) fn check_message(input: &[u8]) {
    let mut source = Source(input);
    let mut header = header(&mut source);
    mend(&mut header);
    readable(&header);
    if let Some(short) = shorten(&header, FRAME_MAX) {
        assert!(short.frame.len() <= FRAME_MAX, "{}", short.frame.len());
        readable(&short.frame);
    }
    // As if much less had room: without the other properties all fits.
    if let Some(short) = shorten(&header, 6_000) {
        assert!(short.frame.len() <= 6_000, "{}", short.frame.len());
        readable(&short.frame);
    }
    for [class, method, before] in [[60, 60, 9], [60, 71, 9], [60, 50, 2]] {
        let mut frame = deliver(&mut source, class, method, usize::from(before));
        mend(&mut frame);
        let payload = &frame[7..frame.len() - 1];
        assert!(parse_class(payload).is_ok_and(|(rest, _)| rest.is_empty()));
    }
}

fn readable(header: &[u8]) {
    let size = u32::from_be_bytes(header[3..7].try_into().unwrap()) as usize;
    assert_eq!(header.len(), size + 8);
    let (rest, _) = parse_properties(&header[19..header.len() - 1]).expect("it can be read");
    assert!(rest.is_empty());
}

fn header(source: &mut Source<'_>) -> Vec<u8> {
    let flags = u16::from_be_bytes(source.bytes()) & 0xfffc | 1 << 13;
    let mut payload = [&[0, 60, 0, 0][..], &[0; 8], &flags.to_be_bytes()].concat();
    for (place, property) in b"sstoossssTssss".iter().enumerate() {
        if flags & (0x8000 >> place) == 0 {
            continue;
        }
        match property {
            b's' => short(&mut payload, &source.some()),
            b'o' => payload.push(source.byte()),
            b'T' => payload.extend(source.bytes::<8>()),
            _ => {
                let members = members(source, 3);
                long(&mut payload, &members);
            }
        }
    }
    frame(2, &payload)
}

fn members(source: &mut Source<'_>, depth: u8) -> Vec<u8> {
    let mut members = Vec::new();
    for _ in 0..source.byte() % 12 {
        short(&mut members, &source.some());
        members.extend(value(source, depth));
    }
    members
}

fn value(source: &mut Source<'_>, depth: u8) -> Vec<u8> {
    let kinds = b"tbBsuUIifLldTDVSxAFN#";
    let kind = kinds[usize::from(source.byte()) % kinds.len()];
    let mut value = vec![kind];
    match kind {
        b't' | b'b' | b'B' => value.push(source.byte()),
        b's' | b'u' | b'U' => value.extend(source.bytes::<2>()),
        b'I' | b'i' | b'f' => value.extend(source.bytes::<4>()),
        b'L' | b'l' | b'd' | b'T' => value.extend(source.bytes::<8>()),
        b'D' => value.extend(source.bytes::<5>()),
        b'S' | b'x' => long(&mut value, &source.some()),
        b'A' if depth > 0 => {
            let items: Vec<_> =
                (0..source.byte() % 8).flat_map(|_| value_of(source, depth)).collect();
            long(&mut value, &items);
        }
        b'F' if depth > 0 => long(&mut value, &members(source, depth - 1)),
        // Arrays within each other, around a value.
        b'N' => {
            value = value_of(source, 1);
            let levels = usize::from(u16::from_be_bytes(source.bytes())) % (8 * DEEPEST);
            for _ in 0..levels {
                let inner = std::mem::replace(&mut value, vec![b'A']);
                long(&mut value, &inner);
            }
        }
        // A long text.
        b'#' => {
            let bytes = usize::from(u16::from_be_bytes(source.bytes()));
            value[0] = b'S';
            long(&mut value, &vec![0xff; bytes]);
        }
        _ => value[0] = b'V',
    }
    value
}

fn value_of(source: &mut Source<'_>, depth: u8) -> Vec<u8> {
    value(source, depth - 1)
}

fn deliver(source: &mut Source<'_>, class: u8, method: u8, before: usize) -> Vec<u8> {
    let mut payload = vec![0, class, 0, method];
    if method == 60 {
        short(&mut payload, b"consumer");
    }
    payload.extend(vec![1; before]);
    if method == 50 {
        short(&mut payload, &source.some());
    }
    short(&mut payload, &source.some());
    short(&mut payload, &source.some());
    if method == 71 {
        payload.extend([0; 4]);
    }
    frame(1, &payload)
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    long(&mut frame, payload);
    frame.push(0xce);
    frame
}

fn short(into: &mut Vec<u8>, text: &[u8]) {
    into.push(u8::try_from(text.len()).unwrap());
    into.extend_from_slice(text);
}

fn long(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    into.extend_from_slice(bytes);
}
