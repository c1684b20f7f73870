//! A frame as an agent sends it, and a decompressed batch: all that a workspace does with them before it stores rows.
#![no_main]

use vedette_wire::{
    Body, Record,
    body::RowContext,
    codec, frame,
    render::{self, Origin},
};

fn batch(plain: &[u8]) {
    let Ok((header, records)) = codec::decode_header(plain) else { return };
    let _ = codec::outline(records);
    let scanned = codec::scan(&header, records, |record| drop(record.into_body()));
    let decoded = codec::decode(plain);
    assert_eq!(scanned.is_ok(), decoded.is_ok(), "both ways to decode a batch agree");
    let Ok(batch) = decoded else { return };
    for (index, record) in batch.records.iter().enumerate() {
        render::render(&Origin::in_batch(&batch.header, index, record), record);
        let Record { body, position, .. } = record;
        let row = body.row(&RowContext { source_name: None, position: *position });
        assert_eq!(row.len(), Body::kind(body).columns.len(), "a value for each column");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((head, sealed)) = frame::parse(bytes)
        && let Ok(plain) = codec::decompress(sealed, head.compression, 1 << 20)
    {
        batch(&plain);
    }
    batch(bytes);
});
