//! What the wire costs without a broker: `cargo bench -p forebay-producer --features testing --bench wire`.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_producer::Envelope;
use forebay_producer::link::mend::mend;
use forebay_producer::testing::sifted;
use forebay_producer::wire::envelope::Raw;
use lapin::types::FieldTable;

fn job() -> Envelope {
    Envelope::new("bench.nothing", "default", Bytes::from(vec![b'7'; 200]))
}

fn envelope(criterion: &mut Criterion) {
    let job = job();
    let properties = job.properties();
    criterion.bench_function("envelope/new", |bench| bench.iter(|| black_box(self::job())));
    criterion.bench_function("envelope/encode", |bench| bench.iter(|| job.properties()));
    criterion.bench_function("envelope/decode", |bench| {
        bench.iter(|| {
            let payload = job.payload.clone();
            Envelope::decode(Raw {
                properties: black_box(&properties),
                routing_key: "default",
                redelivered: false,
                payload,
            })
        });
    });
}

/// One delivery as it comes off the wire: method, properties, body.
fn delivery() -> [Vec<u8>; 3] {
    let frame = |kind: u8, payload: &[u8]| {
        let size = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    };
    let method =
        [&[0, 60, 0, 60, 4][..], b"host", &[0; 9], b"\x07forebay", b"\x07default"].concat();
    let mut table = Vec::new();
    let properties = job().properties();
    for (name, value) in properties.headers().as_ref().unwrap_or(&FieldTable::default()) {
        table.push(u8::try_from(name.as_str().len()).expect("short"));
        table.extend(name.as_str().as_bytes());
        match value {
            lapin::types::AMQPValue::LongString(text) => {
                table.push(b'S');
                table.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
                table.extend(text.as_bytes());
            }
            _ => table.extend(b"l\0\0\0\0\0\0\0\x01"),
        }
    }
    let size = u32::try_from(table.len()).expect("short").to_be_bytes();
    let flags = (1_u16 << 13 | 1 << 7).to_be_bytes();
    let header = [&[0, 60, 0, 0][..], &200_u64.to_be_bytes(), &flags, &size, &table, b"\x02id"];
    [frame(1, &method), frame(2, &header.concat()), frame(3, &[b'7'; 200])]
}

fn sieve(criterion: &mut Criterion) {
    let frames = delivery();
    let mut header = frames[1].clone();
    criterion.bench_function("sieve/mend one header", |bench| {
        bench.iter(|| mend(black_box(&mut header)));
    });
    let stream = frames.concat().repeat(100);
    let mut group = criterion.benchmark_group("sieve");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 deliveries", |bench| bench.iter(|| sifted(black_box(&stream))));
    group.finish();
}

criterion_group!(benches, envelope, sieve);
criterion_main!(benches);
