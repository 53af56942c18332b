//! Whole-page operations against a model of bytes.

use proptest::prelude::*;
use quire_kernels::{Backend, KvShape, KvType};

use crate::support::*;

#[derive(Clone, Debug)]
enum Op {
    Write(u32, u8),
    Copy(u32, u32),
    Zero(Vec<u32>),
}

const PAGES: u32 = 6;

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES;
    prop_oneof![
        (page.clone(), any::<u8>()).prop_map(|(page, seed)| Op::Write(page, seed)),
        (page.clone(), page.clone()).prop_map(|(from, to)| Op::Copy(from, to)),
        prop::collection::vec(page, 0..4).prop_map(Op::Zero),
    ]
}

fn shape() -> impl Strategy<Value = KvShape> {
    let sizes = (prop::sample::select(vec![16, 32, 64]), 1usize..3, 1usize..4);
    let rest = (prop::sample::select(vec![2, 24, 64]), prop::sample::select(vec![KvType::F32, KvType::Bf16]));
    (sizes, rest).prop_map(|((page_tokens, layers, kv_heads), (head_dim, kind))| KvShape {
        pages: PAGES as usize,
        page_tokens,
        layers,
        kv_heads,
        head_dim,
        kind,
    })
}

fn run(backend: &mut dyn Backend, ops: &[Op], name: &str) {
    let len = backend.page_read(0).len();
    let mut model = vec![vec![0u8; len]; PAGES as usize];
    for op in ops {
        match op {
            Op::Write(page, seed) => {
                // One byte anywhere must be seen by a scan: mostly zero contents.
                let mut bytes = vec![0; len];
                bytes[*seed as usize * 977 % len] = *seed;
                backend.page_write(*page, &bytes);
                model[*page as usize] = bytes;
            }
            Op::Copy(from, to) => {
                backend.page_copy(&[(*from, *to)]);
                model[*to as usize] = model[*from as usize].clone();
            }
            Op::Zero(pages) => {
                backend.page_zero(pages);
                pages.iter().for_each(|p| model[*p as usize].fill(0));
            }
        }
        for page in 0..PAGES {
            let bytes = &model[page as usize];
            assert_eq!(&backend.page_read(page), bytes, "{name} after {op:?}");
        }
        let every: Vec<u32> = (0..PAGES).collect();
        let is_dirty = |&page: &u32| model[page as usize].iter().any(|b| *b != 0);
        let dirty: Vec<u32> = every.iter().copied().filter(is_dirty).collect();
        assert_eq!(backend.page_unclean(&every), dirty, "{name} after {op:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pages_copy_zero_and_scan_as_bytes_do(shape in shape(), ops in prop::collection::vec(op(), 1..12)) {
        for maker in [Maker::Reference, Maker::Cpu(quire_kernels::cpu::Isa::detect(), 2)] {
            let mut backend = maker.make();
            backend.kv_pool(shape).unwrap();
            run(&mut *backend, &ops, &format!("{maker:?}"));
        }
    }
}

#[test]
fn a_page_is_as_large_as_its_shape_says() {
    let shape =
        KvShape { pages: 2, page_tokens: 32, layers: 3, kv_heads: 2, head_dim: 24, kind: KvType::Bf16 };
    let mut b = Maker::Cpu(quire_kernels::cpu::Isa::Portable, 1).make();
    b.kv_pool(shape).unwrap();
    assert_eq!(b.page_read(1).len(), shape.page_bytes());
}
