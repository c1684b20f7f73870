//! A log line: the first eight bytes are the present time, the rest is the line.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((now, raw)) = bytes.split_first_chunk() {
        vedette_collectors::fuzzing::line(raw, i64::from_le_bytes(*now));
    }
});
