"""The verbs: simulate, pretrain, choose, reconstruct, quantify, spectrum."""

from dipct.pipeline.choose_network import choose_network as choose_network
from dipct.pipeline.deep_image_prior import generator_of as generator_of
from dipct.pipeline.prepare import open_scan as open_scan
from dipct.pipeline.pretrain import pretrain as pretrain
from dipct.pipeline.pretrain import remove_checkpoint as remove_checkpoint
from dipct.pipeline.reconstruct import reconstruct as reconstruct
from dipct.pipeline.simulate import example_scan as example_scan
from dipct.pipeline.simulate import simulate as simulate
from dipct.pipeline.spectrum import network_spectra_of as network_spectra_of
from dipct.pipeline.uncertainty import quantify as quantify
