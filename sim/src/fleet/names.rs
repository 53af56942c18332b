//! The names of a prompt's blocks, as router and replica compute them alike.

use base::{AdapterId, ChainRoot, Generation, NamespaceId, TokenId};

use crate::replica::{MODEL, namespace_key};

/// Of the whole blocks of `tokens`.
pub fn names(
    namespace: NamespaceId,
    generation: Generation,
    tokens: &[TokenId],
    page_tokens: u32,
) -> Vec<u64> {
    let root =
        ChainRoot { generation, model: MODEL, layout: [0; 32], adapter: AdapterId(0), salt: Vec::new() };
    let mut name = root.hash(&namespace_key(namespace));
    let next = |block: &[TokenId]| {
        name = name.next(block);
        name.low64()
    };
    tokens.chunks_exact(page_tokens as usize).map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{Replica, ReplicaConfig};

    #[test]
    fn router_and_replica_name_a_prompt_alike() {
        let tokens: Vec<TokenId> = (0..100).collect();
        let (namespace, generation) = (NamespaceId(3), Generation(2));
        let mut replica = Replica::new(ReplicaConfig::small(), 1);
        replica.register(namespace);
        let own = names(namespace, generation, &tokens, 16);
        assert_eq!(own.len(), 6);
        assert_eq!(replica.names(namespace, generation, &tokens), own);
    }
}
