"""The live workers of a stage, whatever they run on: started, watched, replaced, stopped."""
