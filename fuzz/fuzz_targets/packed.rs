//! Packed lines and entries: arbitrary records are unpacked, and the lines of a text are packed and come back.
#![no_main]

use std::sync::Arc;
use vedette_wire::{Body, Chunk, Packer, Position, Source, body::Syslog, codec};

fn roundtrip(text: &[u8]) {
    let source = Source { collector: "fuzz", id: "file".to_owned(), name: None };
    let (mut chunk, mut packer, mut at) = (Chunk::new(Arc::new(source)), Packer::default(), 0);
    let mut lines = Vec::new();
    for whole in text.split_inclusive(|byte| *byte == b'\n') {
        let position = Position(at, at + whole.len() as u64);
        at = position.1;
        if packer.push(whole, position, &Syslog::default()) {
            lines.push(whole);
        }
    }
    chunk.push_packed(1, &mut packer);
    let records = chunk.decode().expect("what was packed can be unpacked");
    assert_eq!(records.len(), lines.len());
    for (record, whole) in records.iter().zip(lines) {
        let Body::Syslog(line) = &record.body else { panic!("a line is a line") };
        assert!(whole.starts_with(&line.raw), "a line comes back as it was");
        assert!(whole.len() - line.raw.len() <= 2, "only the line end is left out");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = codec::decode_records(bytes);
    let _ = codec::halve(bytes);
    if let Ok(unpacked) = codec::unpack(bytes) {
        let (packed, plain) = (codec::decode_records(bytes), codec::decode_records(&unpacked));
        assert_eq!(packed.expect("it was unpacked").len(), plain.expect("records").len());
    }
    roundtrip(bytes);
});
