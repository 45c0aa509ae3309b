//! An edit: `GroupQueryAttention` is told lengths and not left to count a mask.
//!
//! Exports compute what the operator wants to know from an attention mask as wide as the longest row, in nodes that run
//! anew in each step. The mask of a large batch is larger than all else that a step brings to the device, and nodes on
//! the host between those on the device keep a step from being captured.

use super::{
    edit::{NodeProto, field},
    graph::text,
    proto::ValueInfoProto,
    splice::{encode, fields, push_bytes},
};
use prost::{DecodeError, Message};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    ffi::CStr,
};

/// `[batch]`, tokens that a row has with the new ones, less one.
pub(super) const SEQLENS_K: &CStr = c"ortolan/seqlens_k";
/// A scalar on the host, at least as large as the longest row.
pub(super) const TOTAL_SEQUENCE_LENGTH: &CStr = c"ortolan/total_sequence_length";

/// Their places among the operator's inputs.
const PLACES: [(usize, &CStr); 2] = [(5, SEQLENS_K), (6, TOTAL_SEQUENCE_LENGTH)];

const MASK: &str = "attention_mask";
const INT32: i32 = 6;
/// `AttributeType` of a graph inside a node, and of several.
const GRAPH_ATTRIBUTES: [i32; 2] = [5, 10];

/// Applies the edit to the fields of a graph, where the mask serves nothing else. Returns whether it does.
pub(super) fn feed(pieces: &mut Vec<Cow<'_, [u8]>>) -> Result<bool, DecodeError> {
    let mut nodes = Vec::new();
    let mut outputs = Vec::new();
    let mut has_mask = false;
    for (index, piece) in pieces.iter().enumerate() {
        let Some(field) = fields(piece)?.pop() else { continue };
        match field.number {
            field::GRAPH_NODE => nodes.push((index, NodeProto::decode(field.payload)?)),
            field::GRAPH_OUTPUT => outputs.push(field.name().to_owned()),
            field::GRAPH_INPUT => has_mask |= field.name() == MASK,
            _ => {}
        }
    }
    let is_attention = |node: &NodeProto| node.op_type == "GroupQueryAttention";
    let Some((_, first)) = nodes.iter().find(|(_, node)| is_attention(node)) else { return Ok(false) };
    let told = |node: &NodeProto| PLACES.map(|(place, _)| node.input.get(place).cloned().unwrap_or_default());
    let counted = told(first);
    let all_alike = nodes.iter().all(|(_, node)| !is_attention(node) || told(node) == counted);
    if !has_mask || !all_alike || counted.iter().any(String::is_empty) {
        return Ok(false);
    }
    for (_, node) in &mut nodes {
        if is_attention(node) {
            PLACES.iter().for_each(|(place, name)| node.input[*place] = text(name).to_owned());
        }
    }
    let Some(dead) = left_over(&nodes, &outputs, &counted) else { return Ok(false) };

    let dead_pieces: BTreeSet<usize> = dead.iter().map(|node| nodes[*node].0).collect();
    let by_piece: HashMap<usize, &NodeProto> = nodes.iter().map(|(piece, node)| (*piece, node)).collect();
    let live = nodes.iter().enumerate().filter(|(number, _)| !dead.contains(number));
    let read: BTreeSet<&str> = live.flat_map(|(_, (_, node))| node.input.iter().map(String::as_str)).collect();
    let unread = |name: &str| dead.iter().any(|node| nodes[*node].1.input.iter().any(|input| input == name));
    let mut kept = Vec::with_capacity(pieces.len() + 2);
    for (index, piece) in std::mem::take(pieces).into_iter().enumerate() {
        let Some(field) = fields(&piece)?.pop() else { continue };
        let is_gone = match field.number {
            field::GRAPH_NODE => dead_pieces.contains(&index),
            field::GRAPH_INPUT => field.name() == MASK,
            field::GRAPH_INITIALIZER => {
                let name = field.string(field::TENSOR_NAME);
                unread(name) && !read.contains(name)
            }
            _ => false,
        };
        match by_piece.get(&index) {
            _ if is_gone => {}
            Some(node) if is_attention(node) => kept.push(Cow::Owned(with_inputs(field.payload, &node.input)?)),
            _ => kept.push(piece),
        }
    }
    let input = |name, shape| Cow::Owned(encode(field::GRAPH_INPUT, &ValueInfoProto::of(text(name), INT32, shape)));
    kept.push(input(SEQLENS_K, vec!["batch_size"]));
    kept.push(input(TOTAL_SEQUENCE_LENGTH, vec![]));
    *pieces = kept;
    Ok(true)
}

/// The nodes that computed these values and nothing that is still read. `None` where they or the mask are still read.
fn left_over(nodes: &[(usize, NodeProto)], outputs: &[String], counted: &[String]) -> Option<BTreeSet<usize>> {
    let mut producers = HashMap::new();
    for (number, (_, node)) in nodes.iter().enumerate() {
        // What a graph inside a node reads cannot be seen from here.
        if node.attribute.iter().any(|attribute| GRAPH_ATTRIBUTES.contains(&attribute.r#type)) {
            return None;
        }
        producers.extend(node.output.iter().map(|output| (output.as_str(), number)));
    }
    let behind = |names: &[String]| {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut found = BTreeSet::new();
        while let Some(name) = names.pop() {
            if let Some(number) = producers.get(name)
                && found.insert(*number)
            {
                names.extend(nodes[*number].1.input.iter().map(String::as_str));
            }
        }
        found
    };
    let dead: BTreeSet<usize> = behind(counted).difference(&behind(outputs)).copied().collect();
    let mut gone: BTreeSet<&str> =
        dead.iter().flat_map(|node| nodes[*node].1.output.iter().map(String::as_str)).collect();
    gone.insert(MASK);
    let mut left = nodes.iter().enumerate().filter(|(number, _)| !dead.contains(number));
    let is_read = left.any(|(_, (_, node))| node.input.iter().any(|input| gone.contains(input.as_str())));
    (!is_read).then_some(dead)
}

/// The node with other inputs, as a field of the graph.
fn with_inputs(node: &[u8], inputs: &[String]) -> Result<Vec<u8>, DecodeError> {
    let mut payload = Vec::with_capacity(node.len() + 64);
    inputs.iter().for_each(|input| push_bytes(&mut payload, field::NODE_INPUT, input.as_bytes()));
    for field in fields(node)?.iter().filter(|field| field.number != field::NODE_INPUT) {
        payload.extend_from_slice(field.whole);
    }
    let mut whole = Vec::with_capacity(payload.len() + 16);
    push_bytes(&mut whole, field::GRAPH_NODE, &payload);
    Ok(whole)
}
