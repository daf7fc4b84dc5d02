//! The cost of one advertisement: `decode` runs on every received packet, also hostile ones.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use vrrp::{
    Addresses, AdvertInterval, Advertisement, Auth, AuthPass, ChecksumPolicy, MULTICAST_V4, MacAddr,
    Priority, PseudoHeader, Version, Vrid, gratuitous_arp, parse_announcement,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);

fn advertisement(version: Version) -> Advertisement {
    Advertisement {
        version,
        vrid: Vrid::new(51).expect("in range"),
        priority: Priority::new(200).expect("in range").full(),
        interval: AdvertInterval::DEFAULT,
        addresses: Addresses::V4(vec![VIP]),
        auth: match version {
            Version::V2 => Auth::Pass(AuthPass::new("Example").expect("short enough")),
            Version::V3 => Auth::None,
        },
    }
}

fn codec(criterion: &mut Criterion) {
    let source = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
    let pseudo = PseudoHeader::new(source, IpAddr::V4(MULTICAST_V4)).expect("one family");
    for (name, version) in [("v2_pass", Version::V2), ("v3", Version::V3)] {
        let value = advertisement(version);
        let mut bytes = Vec::with_capacity(64);
        value.encode(&pseudo, &mut bytes);
        let wire = bytes.clone();
        criterion.bench_function(&format!("encode/{name}"), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                black_box(&value).encode(&pseudo, &mut bytes);
            });
        });
        criterion.bench_function(&format!("decode/{name}"), |bencher| {
            bencher.iter(|| Advertisement::decode(black_box(&wire), &pseudo, ChecksumPolicy::Lenient));
        });
        let mut broken = wire.clone();
        broken[7] ^= 1;
        criterion.bench_function(&format!("reject_checksum/{name}"), |bencher| {
            bencher.iter(|| Advertisement::decode(black_box(&broken), &pseudo, ChecksumPolicy::Lenient));
        });
    }
    let mac = MacAddr([2, 0, 0, 9, 0, 1]);
    criterion.bench_function("announce/gratuitous_arp", |bencher| {
        bencher.iter(|| gratuitous_arp(mac, black_box(VIP)));
    });
    let frame = gratuitous_arp(mac, VIP);
    criterion
        .bench_function("announce/parse", |bencher| bencher.iter(|| parse_announcement(black_box(&frame))));
}

criterion_group!(benches, codec);
criterion_main!(benches);
